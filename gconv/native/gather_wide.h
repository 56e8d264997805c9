// Roles y and x of wide groups: lanes are result channels of one group, and each source value is broadcast.
//
// The register tile is Q results by V vectors of filters:
//
//   for each tap, for each source channel:  V loads of weights;  for each of Q results: 1 broadcast load of x, V multiply-adds
//
// V + Q loads for V * Q multiply-adds: 8 for 12 with (V, Q) = (2, 6), 7 for 12 with (3, 4), 9 for 8 with (1, 8).
//
// A tile's results are any Q pixels of the same phases, also of two rows or two images: a table of offsets, made once for a
// stretch of pixels and used for every group and filter, says where each tap finds their sources. A tap that falls on the
// padding finds zeros, and one that does so for the whole tile is left out.

#pragma once

#include "gather.h"

namespace gconv {
namespace {

template <class T, int Q, int V>
ALWAYS_INLINE void multiply(Vector<T> (&sums)[Q][V], const T* const (&x)[Q], const Wide<T>* w, int64_t channels) {
  for (int64_t s = 0; s < channels; ++s, w += V * LANES<Wide<T>>) {
    Vector<T> weight[V];
    UNROLL for (int v = 0; v < V; ++v) weight[v] = load(w + v * LANES<Wide<T>>);
    UNROLL for (int q = 0; q < Q; ++q) {
      Vector<T> source = broadcast(x[q][s]);
      UNROLL for (int v = 0; v < V; ++v) sums[q][v] += source * weight[v];
    }
  }
}

template <class T>
class GatherWide {
  using A = Wide<T>;
  static constexpr int L = LANES<A>;
  static constexpr int64_t TILE = 24;  // a multiple of every Q
  const Problem& p;
  Gather g;
  int64_t vectors;  // of a group's filters

  struct Pixels {  // a stretch of the results of one combination of phases
    const Phase *depth, *height, *width;
    int64_t first, count;
  };

 public:
  GatherWide(Role role, const Problem& p) : p(p), g(role, p), vectors(ceil_div(g.results, L)) {}

  int64_t packed_size() const { return g.groups * vectors * g.taps * g.sources * L; }
  int64_t scratch_bytes() const { return packed_size() * (int64_t)sizeof(A) + g.sources * (int64_t)sizeof(T); }

  void run(const T* x, const T* w, T* result, void* scratch, const Parallel& parallel) const {
    A* packed = static_cast<A*>(scratch);
    T* zeros = reinterpret_cast<T*>(packed + packed_size());
    memset(zeros, 0, g.sources * sizeof(T));
    for_each(parallel, g.groups, g.taps * g.sources * vectors * L, [&](int64_t group) { pack(group, w, packed); });

    int64_t stretch = TILE * maximum(1, minimum(4, 8192 / TILE / g.taps));
    List<Pixels> stretches;
    for (int64_t a = 0; a < g.axis[0].phases.size; ++a)
      for (int64_t b = 0; b < g.axis[1].phases.size; ++b)
        for (int64_t c = 0; c < g.axis[2].phases.size; ++c) {
          const Phase *d = &g.axis[0].phases[a], *h = &g.axis[1].phases[b], *w = &g.axis[2].phases[c];
          int64_t pixels = g.batch * d->count * h->count * w->count;
          for (int64_t i = 0; i < pixels; i += stretch) stretches.push({d, h, w, i, minimum(stretch, pixels - i)});
        }
    int64_t pieces = minimum(g.groups, ceil_div(4 * parallel.threads, maximum(stretches.size, 1)));
    for_each(parallel, stretches.size * pieces, 1 << 14, [&](int64_t unit) {
      int64_t piece = unit % pieces;
      results(stretches[unit / pieces], g.groups * piece / pieces, g.groups * (piece + 1) / pieces, x, packed, zeros, result);
    });
  }

 private:
  // [group][block of V vectors][tap][source channel][lane], zeros beyond the last filter.
  void pack(int64_t group, const T* w, A* packed) const {
    A* to = packed + group * vectors * g.taps * g.sources * L;
    for (int64_t v = 0, block; v < vectors; v += block) {
      block = block_of(vectors - v);
      for (int64_t tap = 0; tap < g.taps; ++tap)
        for (int64_t s = 0; s < g.sources; ++s)
          for (int64_t f = v * L; f < (v + block) * L; ++f)
            *to++ = f < g.results ? value(w[tap * g.tap_stride + s * g.source_stride + group * g.group_stride + f * g.result_stride])
                                  : A{};
    }
  }

  static int64_t block_of(int64_t vectors) { return vectors == 1 ? 1 : vectors == 3 ? 3 : 2; }

  void results(const Pixels& pixels, int64_t from, int64_t to, const T* x, const A* packed, const T* zeros, T* result) const {
    const Axis &depth = g.axis[0], &height = g.axis[1], &width = g.axis[2];
    const Phase &dp = *pixels.depth, &hp = *pixels.height, &wp = *pixels.width;
    int64_t padded = ceil_div(pixels.count, TILE) * TILE;
    List<int64_t> offsets, index, outputs, base[3];  // offsets: [tap][pixel], -1 on the padding
    for (int64_t i = 0; i < pixels.count; ++i) {
      int64_t q = pixels.first + i, w = q % wp.count, h = q / wp.count % hp.count, d = q / wp.count / hp.count % dp.count;
      int64_t n = q / wp.count / hp.count / dp.count;
      int64_t rd = dp.first + d * depth.step, rh = hp.first + h * height.step, rw = wp.first + w * width.step;
      outputs.push((((n * depth.results + rd) * height.results + rh) * width.results + rw) * g.result_channels());
      base[0].push(d * depth.stride), base[1].push(h * height.stride), base[2].push(w * width.stride);
    }
    int64_t image = depth.sources * height.sources * width.sources, per_image = dp.count * hp.count * wp.count;
    for (int64_t a = 0; a < dp.size; ++a)
      for (int64_t b = 0; b < hp.size; ++b)
        for (int64_t c = 0; c < wp.size; ++c) {
          bool any = false;
          offsets.reserve(offsets.size + padded);
          for (int64_t i = 0; i < padded; ++i) {
            int64_t offset = -1;
            if (i < pixels.count) {
              int64_t d = base[0][i] + dp.taps[a].source, h = base[1][i] + hp.taps[b].source, w = base[2][i] + wp.taps[c].source;
              if (d >= 0 && d < depth.sources && h >= 0 && h < height.sources && w >= 0 && w < width.sources)
                offset = ((pixels.first + i) / per_image * image + (d * height.sources + h) * width.sources + w) *
                         g.source_channels(), any = true;
            }
            offsets[offsets.size + i] = offset;
          }
          if (!any) continue;  // overwritten by the next tap
          offsets.size += padded;
          index.push(g.tap(dp.taps[a].index, hp.taps[b].index, wp.taps[c].index, p));
        }
    for (int64_t group = from; group < to; ++group)
      for (int64_t v = 0, block; v < vectors; v += block) {
        block = block_of(vectors - v);
        const A* w = packed + (group * vectors + v) * g.taps * g.sources * L;
        int64_t filters = minimum(block * L, g.results - v * L);
        const T* source = x + group * g.sources;
        T* to_group = result + group * g.results + v * L;
        if (block == 1)
          tiles<8, 1>(source, w, zeros, index, offsets, padded, outputs, filters, to_group);
        else if (block == 2)
          tiles<6, 2>(source, w, zeros, index, offsets, padded, outputs, filters, to_group);
        else
          tiles<4, 3>(source, w, zeros, index, offsets, padded, outputs, filters, to_group);
      }
  }

  template <int Q, int V>
  void tiles(const T* x, const A* weights, const T* zeros, const List<int64_t>& index, const List<int64_t>& offsets,
             int64_t padded, const List<int64_t>& outputs, int64_t filters, T* result) const {
    for (int64_t first = 0; first < outputs.size; first += Q) {
      Vector<T> sums[Q][V] = {};
      for (int64_t t = 0; t < index.size; ++t) {
        const T* source[Q];
        const int64_t* offset = offsets.data + t * padded + first;
        int64_t missing = -1;  // negative where all sources are on the padding
        UNROLL for (int q = 0; q < Q; ++q) missing &= offset[q];
        if (missing < 0) continue;
        UNROLL for (int q = 0; q < Q; ++q) source[q] = offset[q] < 0 ? zeros : x + offset[q];
        multiply<T, Q, V>(sums, source, weights + index[t] * g.sources * V * L, g.sources);
      }
      int64_t count = minimum(Q, outputs.size - first);
      UNROLL for (int q = 0; q < Q; ++q) {
        if (q >= count) break;
        UNROLL for (int v = 0; v < V; ++v) {
          T* to = result + outputs[first + q] + v * L;
          if (filters >= (v + 1) * L)
            store(to, sums[q][v]);
          else
            store_first(to, sums[q][v], filters - v * L);
        }
      }
    }
  }
};

}  // namespace
}  // namespace gconv
