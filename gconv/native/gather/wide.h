// Roles y and x of wide groups: lanes are result channels of one group, and each source value is broadcast.
//
// The register tile is Q results by V vectors of filters:
//
//   for each tap, for each source channel:  V loads of weights;  for each of Q results: 1 broadcast load of
//   x, V multiply-adds
//
// V + Q loads for V * Q multiply-adds: 8 for 12 with (V, Q) = (2, 6), 7 for 12 with (3, 4), 9 for 8 with (1,
// 8). With 32 registers Q is 7, which divides the rows that images have in practice: 9 for 14 with V = 2.
//
// A tile's results are any Q pixels of the same phases, also of two rows or two images: a table of offsets,
// made once for a stretch of pixels and used for every group and filter, says where each tap finds their
// sources. A tap that falls on the padding finds zeros. One that does so for the whole tile is left out, and
// so is that of the first or of the last pixel: in the rows that images have in practice, tiles begin and end
// at borders.

#pragma once

#include "gather/gather.h"

namespace gconv {
namespace {

// For the pixels from FIRST to LAST.
template <int FIRST, int LAST, class T, int Q, int V>
ALWAYS_INLINE void multiply(Vector<T> (&sums)[Q][V], const T* const (&x)[Q], const Wide<T>* w,
                            int64_t channels) {
  for (int64_t s = 0; s < channels; ++s, w += V * LANES<Wide<T>>) {
    Vector<T> weight[V];
    UNROLL for (int v = 0; v < V; ++v) weight[v] = load(w + v * LANES<Wide<T>>);
    UNROLL for (int q = FIRST; q < LAST; ++q) {
      Vector<T> source = broadcast(x[q][s]);
      UNROLL for (int v = 0; v < V; ++v) sums[q][v] += source * weight[v];
    }
  }
}

template <class T>
class GatherWide {
  using A = Wide<T>;
  static constexpr int L = LANES<A>;
  static constexpr bool MANY = REGISTERS == 32;
  static constexpr int Q1 = wide_tile(REGISTERS, 1), Q2 = wide_tile(REGISTERS, 2),
                       Q3 = wide_tile(REGISTERS, 3);
  static constexpr int64_t TILES = wide_tiles(REGISTERS);
  const Plan& plan;
  const Problem& p;
  Gather g;
  int64_t vectors;  // of a group's filters

  struct Stretch {  // of the results of one combination of phases
    const Phase *depth, *height, *width;
    int64_t first, count;
  };
  struct RowPart {  // of a stretch: its pixels in one row of the results
    int64_t first, count;
    int64_t image, depth, height, width;  // where its first pixel's sources are, but for the tap
  };

 public:
  GatherWide(const Plan& plan, Role role, const Problem& p)
      : plan(plan), p(p), g(role, p), vectors(ceil_div(g.results, L)) {}

  void run(const T* x, const T* w, T* result, void* scratch, const Parallel& parallel) const {
    A* packed = static_cast<A*>(scratch);
    T* zeros = reinterpret_cast<T*>(packed + plan.packed);
    memset(zeros, 0, g.sources * sizeof(T));
    g.pack(parallel, w, packed, 1);
    List<Stretch> stretches;
    for (int64_t a = 0; a < g.axis[0].phases.size; ++a)
      for (int64_t b = 0; b < g.axis[1].phases.size; ++b)
        for (int64_t c = 0; c < g.axis[2].phases.size; ++c) {
          const Phase *d = &g.axis[0].phases[a], *h = &g.axis[1].phases[b], *w = &g.axis[2].phases[c];
          int64_t pixels = g.batch * d->count * h->count * w->count;
          for (int64_t i = 0; i < pixels; i += plan.stretch)
            stretches.push({d, h, w, i, minimum(plan.stretch, pixels - i)});
        }
    g.for_stretches(parallel, stretches.size, [&](int64_t unit, int64_t from, int64_t to) {
      results(stretches[unit], from, to, x, packed, zeros, result);
    });
  }

 private:
  // The parts of rows that a stretch has, and where its results lie.
  void find(const Stretch& pixels, List<RowPart>& parts, List<int64_t>& outputs) const {
    const Axis &depth = g.axis[0], &height = g.axis[1], &width = g.axis[2];
    const Phase &dp = *pixels.depth, &hp = *pixels.height, &wp = *pixels.width;
    outputs.reserve(pixels.count);
    for (int64_t i = 0, count; i < pixels.count; i += count) {
      int64_t q = pixels.first + i, w = q % wp.count, row = q / wp.count;
      int64_t h = row % hp.count, d = row / hp.count % dp.count, n = row / hp.count / dp.count;
      count = minimum(wp.count - w, pixels.count - i);
      parts.push({i, count, n, d * depth.stride, h * height.stride, w * width.stride});
      int64_t rd = dp.first + d * depth.step, rh = hp.first + h * height.step, rw = wp.first + w * width.step;
      int64_t first = ((n * depth.results + rd) * height.results + rh) * width.results + rw;
      for (int64_t k = 0; k < count; ++k) outputs.push((first + k * width.step) * g.result_channels());
    }
  }

  // Where one tap finds the sources of a row's part; whether any is off the padding.
  bool follow(const RowPart& part, int64_t depth_tap, int64_t height_tap, int64_t width_tap,
              int64_t* offsets) const {
    const Axis &depth = g.axis[0], &height = g.axis[1], &width = g.axis[2];
    int64_t d = part.depth + depth_tap, h = part.height + height_tap, w = part.width + width_tap, k = 0,
            from = 0, to = 0;
    if (d >= 0 && d < depth.sources && h >= 0 && h < height.sources) {
      from = minimum(part.count, maximum(0, -floor_div(w, width.stride)));
      to = maximum(from, minimum(part.count, floor_div(width.sources - 1 - w, width.stride) + 1));
    }
    int64_t first = ((part.image * depth.sources + d) * height.sources + h) * width.sources + w;
    offsets += part.first;
    for (; k < from; ++k) offsets[k] = -1;
    for (; k < to; ++k) offsets[k] = (first + k * width.stride) * g.source_channels();
    for (; k < part.count; ++k) offsets[k] = -1;
    return from < to;
  }

  void results(const Stretch& pixels, int64_t from, int64_t to, const T* x, const A* packed, const T* zeros,
               T* result) const {
    int64_t padded = ceil_div(pixels.count, TILES) * TILES;
    List<RowPart> parts;
    List<int64_t> offsets, index, outputs;  // offsets: [tap][pixel], -1 on the padding
    find(pixels, parts, outputs);
    const Phase &dp = *pixels.depth, &hp = *pixels.height, &wp = *pixels.width;
    for (int64_t a = 0; a < dp.size; ++a)
      for (int64_t b = 0; b < hp.size; ++b)
        for (int64_t c = 0; c < wp.size; ++c) {
          offsets.reserve(offsets.size + padded);
          int64_t* to = offsets.data + offsets.size;
          bool any = false;
          int64_t da = dp.taps[a].source, hb = hp.taps[b].source, wc = wp.taps[c].source;
          for (int64_t i = 0; i < parts.size; ++i) any |= follow(parts[i], da, hb, wc, to);
          if (!any) continue;  // overwritten by the next tap
          for (int64_t i = pixels.count; i < padded; ++i) to[i] = -1;
          offsets.size += padded;
          index.push(g.tap(dp.taps[a].index, hp.taps[b].index, wp.taps[c].index, p));
        }
    for (int64_t group = from; group < to; ++group)
      for (int64_t v = 0, block; v < vectors; v += block) {
        block = block_of(vectors - v, 3);
        const A* w = packed + (group * vectors + v) * g.taps * g.sources * L;
        int64_t filters = minimum(block * L, g.results - v * L);
        const T* source = x + group * g.sources;
        T* to_group = result + group * g.results + v * L;
        bool first_reader = plan.past_caches && v == 0 && index.size;
        if (block == 1)
          tiles<Q1, 1>(source, w, zeros, index, offsets, padded, outputs, filters, to_group, first_reader);
        else if (block == 2)
          tiles<Q2, 2>(source, w, zeros, index, offsets, padded, outputs, filters, to_group, first_reader);
        else
          tiles<Q3, 3>(source, w, zeros, index, offsets, padded, outputs, filters, to_group, first_reader);
      }
  }

  // Asks for the sources of a tile to come.
  template <int Q>
  void fetch(const T* x, const int64_t* offsets) const {
    for (int q = 0; q < Q; ++q)
      for (int64_t c = 0; c < g.sources && offsets[q] >= 0; c += LINE / sizeof(T))
        __builtin_prefetch(x + offsets[q] + c, 0, 2);
  }

  template <int Q, int V>
  void tiles(const T* x, const A* weights, const T* zeros, const List<int64_t>& index,
             const List<int64_t>& offsets, int64_t padded, const List<int64_t>& outputs, int64_t filters,
             T* result, bool first_reader) const {
    bool streams = plan.past_caches && whole_lines<T, V>(result, g.results);
    for (int64_t first = 0; first < outputs.size; first += Q) {
      Vector<T> sums[Q][V] = {};
      if (first_reader && first + Q < outputs.size)
        fetch<Q>(x, offsets.data + offsets.size - padded + first + Q);
      for (int64_t t = 0; t < index.size; ++t) {
        const T* source[Q];
        const int64_t* offset = offsets.data + t * padded + first;
        int64_t missing = -1;  // where all sources are on the padding
        UNROLL for (int q = 0; q < Q; ++q) missing &= offset[q];
        if (missing == -1) continue;
        UNROLL for (int q = 0; q < Q; ++q) source[q] = offset[q] < 0 ? zeros : x + offset[q];
        const A* w = weights + index[t] * g.sources * V * L;
        if (offset[0] == -1)
          multiply<1, Q, T>(sums, source, w, g.sources);
        else if (offset[Q - 1] == -1)
          multiply<0, Q - 1, T>(sums, source, w, g.sources);
        else
          multiply<0, Q, T>(sums, source, w, g.sources);
      }
      int64_t count = minimum(Q, outputs.size - first);
      UNROLL for (int q = 0; q < Q; ++q) {
        if (q >= count) break;
        UNROLL for (int v = 0; v < V; ++v) {
          T* to = result + outputs[first + q] + v * L;
          if (filters >= (v + 1) * L)
            streams ? stream(to, sums[q][v]) : store(to, sums[q][v]);
          else
            store_first(to, sums[q][v], filters - v * L);
        }
      }
    }
  }
};

}  // namespace
}  // namespace gconv
