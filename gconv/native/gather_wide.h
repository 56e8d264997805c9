// Roles y and x of wide groups: lanes are result channels of one group, and each source value is broadcast.
//
// The register tile is Q results by V vectors of filters:
//
//   for each tap, for each source channel:  V loads of weights;  for each of Q results: 1 broadcast load of x, V multiply-adds
//
// V + Q loads for V * Q multiply-adds: 8 for 12 with (V, Q) = (2, 6), 7 for 12 with (3, 4), 9 for 8 with (1, 8). With 32
// registers Q is 7, which divides the rows that images have in practice: 9 for 14 with V = 2.
//
// A tile's results are any Q pixels of the same phases, also of two rows or two images: a table of offsets, made once for a
// stretch of pixels and used for every group and filter, says where each tap finds their sources. A tap that falls on the
// padding finds zeros. One that does so for the whole tile is left out, and so is that of the first or of the last pixel: in the
// rows that images have in practice, tiles begin and end at borders.
//
// Few channels of one group make the sums of a tap short. There the taps of a row are one tap, whose sources are neighbours in x;
// those of a window over a border are copied, with zeros where it is on the padding.
//
// A single tap that meets every pixel is a matrix product and needs no table: neighbouring pixels are all as far apart. A few
// addresses reach them, so with up to two vectors a tile has more of them: with 32 registers 14, 16 loads for 28 multiply-adds.

#pragma once

#include "gather.h"

namespace gconv {
namespace {

// For the pixels from FIRST to LAST.
template <int FIRST, int LAST, class T, int Q, int V>
ALWAYS_INLINE void multiply(Vector<T> (&sums)[Q][V], const T* const (&x)[Q], const Wide<T>* w, int64_t channels) {
  for (int64_t s = 0; s < channels; ++s, w += V * LANES<Wide<T>>) {
    Vector<T> weight[V];
    UNROLL for (int v = 0; v < V; ++v) weight[v] = load(w + v * LANES<Wide<T>>);
    UNROLL for (int q = FIRST; q < LAST; ++q) {
      Vector<T> source = broadcast(x[q][s]);
      UNROLL for (int v = 0; v < V; ++v) sums[q][v] += source * weight[v];
    }
  }
}

// For Q pixels, one `step` after the other.
template <class T, int Q, int V>
ALWAYS_INLINE void multiply_dense(Vector<T> (&sums)[Q][V], const T* x, int64_t step, const Wide<T>* w, int64_t channels) {
  const T* from[(Q + 2) / 3];  // every third has a register, as in gather_narrow.h
  from[0] = x;
  UNROLL for (int i = 1; i < (Q + 2) / 3; ++i) from[i] = from[i - 1] + 3 * step;
  for (int64_t s = 0; s < channels; ++s, w += V * LANES<Wide<T>>) {
    Vector<T> weight[V];
    UNROLL for (int v = 0; v < V; ++v) weight[v] = load(w + v * LANES<Wide<T>>);
    UNROLL for (int q = 0; q < Q; ++q) {
      Vector<T> source = broadcast(from[q / 3][q % 3 * step]);
      UNROLL for (int v = 0; v < V; ++v) sums[q][v] += source * weight[v];
    }
    UNROLL for (int i = 0; i < (Q + 2) / 3; ++i) {
      ++from[i];
      __asm__("" : "+r"(from[i]));
    }
  }
}

template <class T>
class GatherWide {
  using A = Wide<T>;
  static constexpr int L = LANES<A>;
  static constexpr bool MANY = REGISTERS == 32;
  static constexpr int Q1 = MANY ? 7 : 8, Q2 = MANY ? 7 : 6, Q3 = MANY ? 7 : 4;  // results of a tile of 1, 2 and 3 vectors
  static constexpr int64_t TILE = MANY ? 28 : 24;                                // a multiple of these
  // Channels of one group up to which the taps of a row are taken as one, and sources that a tile then copies at most (measured).
  static constexpr int64_t FEW = 16, MOST = 1 << 16;
  static constexpr int64_t ROWS = 32;  // of the kernel, packed at a time: of the other role's, whole lines of the cache
  const Problem& p;
  Gather g;
  int64_t vectors;  // of a group's filters
  bool backwards;   // whether the taps of a row meet their sources from the last to the first
  bool by_rows;     // whether the taps of a row are taken as one, whose sources are neighbours
  bool dense;       // whether there is a single tap, and every pixel meets it
  int64_t length;   // sources of what is taken as one tap

  struct Pixels {  // a stretch of the results of one combination of phases
    const Phase *depth, *height, *width;
    int64_t first, count;
  };
  struct Run {  // of a stretch's pixels, in one row of the results
    int64_t first, count;
    int64_t image, depth, height, width;  // where its first pixel's sources are, but for the tap
  };

 public:
  GatherWide(Role role, const Problem& p)
      : p(p), g(role, p), vectors(ceil_div(g.results, L)), backwards(role == Role::x),
        by_rows(g.groups == 1 && g.sources <= FEW && p.window[2] > 1 && p.dilation[2] == 1 &&
                !(backwards && p.strides[2] > 1) && TILE * g.taps * g.sources <= MOST),
        dense(p.one_tap()), length(by_rows ? p.window[2] * g.sources : g.sources) {
    for (int i = 0; i < 3; ++i) dense &= p.strides[i] == 1 && p.low[i] == 0 && p.in[i] == p.out[i];
  }

  int64_t packed_size() const { return g.groups * vectors * g.taps * g.sources * L; }
  int64_t scratch_bytes() const { return packed_size() * (int64_t)sizeof(A) + g.sources * (int64_t)sizeof(T); }

  void run(const T* x, const T* w, T* result, void* scratch, const Parallel& parallel) const {
    A* packed = static_cast<A*>(scratch);
    T* zeros = reinterpret_cast<T*>(packed + packed_size());
    memset(zeros, 0, g.sources * sizeof(T));
    int64_t rows = g.taps * g.sources, chunks = ceil_div(rows, ROWS);
    for_each(parallel, g.groups * chunks, ROWS * vectors * L, [&](int64_t unit) {
      int64_t first = unit / g.groups * ROWS;  // neighbouring groups lie side by side in the kernel
      pack(unit % g.groups, first, minimum(rows, first + ROWS), w, packed);
    });

    int64_t stretch = TILE * maximum(1, minimum(g.tiles_at_once(TILE), 8192 / TILE / g.taps));
    if (dense) {
      int64_t pixels = g.batch * p.in[0] * p.in[1] * p.in[2], count = ceil_div(pixels, stretch);
      return g.for_stretches(parallel, count, [&](int64_t unit, int64_t from, int64_t to) {
        int64_t first = unit * stretch;
        results_dense(minimum(stretch, pixels - first), from, to, x + first * g.source_channels(), packed,
                      result + first * g.result_channels());
      });
    }
    List<Pixels> stretches;
    for (int64_t a = 0; a < g.axis[0].phases.size; ++a)
      for (int64_t b = 0; b < g.axis[1].phases.size; ++b)
        for (int64_t c = 0; c < g.axis[2].phases.size; ++c) {
          const Phase *d = &g.axis[0].phases[a], *h = &g.axis[1].phases[b], *w = &g.axis[2].phases[c];
          int64_t pixels = g.batch * d->count * h->count * w->count;
          for (int64_t i = 0; i < pixels; i += stretch) stretches.push({d, h, w, i, minimum(stretch, pixels - i)});
        }
    g.for_stretches(parallel, stretches.size, [&](int64_t unit, int64_t from, int64_t to) {
      results(stretches[unit], from, to, x, packed, zeros, result);
    });
  }

 private:
  // [group][block of V vectors][tap][source channel][lane], zeros beyond the last filter: of one group, the rows [tap][source]
  // from `first` to `last`.
  void pack(int64_t group, int64_t first, int64_t last, const T* w, A* packed) const {
    for (int64_t v = 0, block; v < vectors; v += block) {
      block = block_of(vectors - v, 3);
      A* to = packed + (group * vectors + v) * g.taps * g.sources * L;
      for (int64_t row = first, count; row < last; row += count) {
        int64_t s = row % g.sources;
        count = minimum(minimum(L, last - row), g.sources - s);
        int64_t tap = row / g.sources;
        if (by_rows && backwards) tap += p.window[2] - 1 - 2 * (tap % p.window[2]);  // in the order of their sources
        const T* from = w + tap * g.tap_stride + s * g.source_stride + group * g.group_stride;
        for (int64_t u = 0; u < block; ++u)
          g.square(from + (v + u) * L * g.result_stride, count, g.results - (v + u) * L, to + row * block * L + u * L, block * L);
      }
    }
  }

  // The runs of a stretch, and where its results lie.
  void find(const Pixels& pixels, List<Run>& runs, List<int64_t>& outputs) const {
    const Axis &depth = g.axis[0], &height = g.axis[1], &width = g.axis[2];
    const Phase &dp = *pixels.depth, &hp = *pixels.height, &wp = *pixels.width;
    outputs.reserve(pixels.count);
    for (int64_t i = 0, count; i < pixels.count; i += count) {
      int64_t q = pixels.first + i, w = q % wp.count, row = q / wp.count;
      int64_t h = row % hp.count, d = row / hp.count % dp.count, n = row / hp.count / dp.count;
      count = minimum(wp.count - w, pixels.count - i);
      runs.push({i, count, n, d * depth.stride, h * height.stride, w * width.stride});
      int64_t rd = dp.first + d * depth.step, rh = hp.first + h * height.step, rw = wp.first + w * width.step;
      int64_t first = ((n * depth.results + rd) * height.results + rh) * width.results + rw;
      for (int64_t k = 0; k < count; ++k) outputs.push((first + k * width.step) * g.result_channels());
    }
  }

  // Where one tap finds the sources of a run; whether any is off the padding.
  bool follow(const Run& run, int64_t depth_tap, int64_t height_tap, int64_t width_tap, int64_t* offsets) const {
    const Axis &depth = g.axis[0], &height = g.axis[1], &width = g.axis[2];
    int64_t d = run.depth + depth_tap, h = run.height + height_tap, w = run.width + width_tap, k = 0, from = 0, to = 0;
    if (d >= 0 && d < depth.sources && h >= 0 && h < height.sources) {
      from = minimum(run.count, maximum(0, -floor_div(w, width.stride)));
      to = maximum(from, minimum(run.count, floor_div(width.sources - 1 - w, width.stride) + 1));
    }
    int64_t first = ((run.image * depth.sources + d) * height.sources + h) * width.sources + w;
    offsets += run.first;
    for (; k < from; ++k) offsets[k] = -1;
    for (; k < to; ++k) offsets[k] = (first + k * width.stride) * g.source_channels();
    for (; k < run.count; ++k) offsets[k] = -1;
    return from < to;
  }

  // Where the taps of a row, the first of them at `width_tap`, find the sources of a run: those of windows over a border are copied.
  bool follow_row(const Run& run, int64_t depth_tap, int64_t height_tap, int64_t width_tap, const T* x, int64_t* offsets,
                  List<T>& copies) const {
    const Axis &depth = g.axis[0], &height = g.axis[1], &width = g.axis[2];
    int64_t d = run.depth + depth_tap, h = run.height + height_tap, w = run.width + width_tap;
    if (d < 0 || d >= depth.sources || h < 0 || h >= height.sources) {
      for (int64_t k = 0; k < run.count; ++k) offsets[run.first + k] = -1;
      return false;
    }
    const T* row = x + ((run.image * depth.sources + d) * height.sources + h) * width.sources * g.sources;
    for (int64_t k = 0; k < run.count; ++k, w += width.stride) {
      int64_t from = maximum(w, 0), to = minimum(w + p.window[2], width.sources);
      offsets[run.first + k] = from >= to ? -1 : row - x + w * g.sources;
      if (from >= to || to - from == p.window[2]) continue;
      offsets[run.first + k] = -1 - copies.size;
      copies.reserve(copies.size + length);
      T* copy = copies.data + copies.size;
      memset(copy, 0, length * sizeof(T));
      memcpy(copy + (from - w) * g.sources, row + from * g.sources, (to - from) * g.sources * sizeof(T));
      copies.size += length;
    }
    return true;
  }

  void results(const Pixels& pixels, int64_t from, int64_t to, const T* x, const A* packed, const T* zeros, T* result) const {
    int64_t padded = ceil_div(pixels.count, TILE) * TILE;
    List<Run> runs;
    List<int64_t> offsets, index, outputs;  // offsets: [tap][pixel], -1 on the padding
    List<T> copies;  // of rows: zeros, and what offsets below -1 mean
    if (by_rows) {
      copies.reserve(length);
      memset(copies.data, 0, length * sizeof(T));
      copies.size = length;
    }
    find(pixels, runs, outputs);
    const Phase &dp = *pixels.depth, &hp = *pixels.height, &wp = *pixels.width;
    for (int64_t a = 0; a < dp.size; ++a)
      for (int64_t b = 0; b < hp.size; ++b)
        for (int64_t c = 0; c < (by_rows ? 1 : wp.size); ++c) {
          offsets.reserve(offsets.size + padded);
          int64_t* to = offsets.data + offsets.size;
          bool any = false;
          int64_t da = dp.taps[a].source, hb = hp.taps[b].source, first = minimum(wp.taps[0].source, wp.taps[wp.size - 1].source);
          for (int64_t i = 0; i < runs.size; ++i)
            any |= by_rows ? follow_row(runs[i], da, hb, first, x, to, copies) : follow(runs[i], da, hb, wp.taps[c].source, to);
          if (!any) continue;  // overwritten by the next tap
          for (int64_t i = pixels.count; i < padded; ++i) to[i] = -1;
          offsets.size += padded;
          index.push(g.tap(dp.taps[a].index, hp.taps[b].index, by_rows ? 0 : wp.taps[c].index, p));
        }
    if (by_rows) zeros = copies.data;
    for (int64_t group = from; group < to; ++group)
      for (int64_t v = 0, block; v < vectors; v += block) {
        block = block_of(vectors - v, 3);
        const A* w = packed + (group * vectors + v) * g.taps * g.sources * L;
        int64_t filters = minimum(block * L, g.results - v * L);
        const T* source = x + group * g.sources;
        T* to_group = result + group * g.results + v * L;
        bool first_reader = p.large && v == 0 && index.size;
        if (block == 1)
          tiles<Q1, 1>(source, w, zeros, index, offsets, padded, outputs, filters, to_group, first_reader);
        else if (block == 2)
          tiles<Q2, 2>(source, w, zeros, index, offsets, padded, outputs, filters, to_group, first_reader);
        else
          tiles<Q3, 3>(source, w, zeros, index, offsets, padded, outputs, filters, to_group, first_reader);
      }
  }

  void results_dense(int64_t pixels, int64_t from, int64_t to, const T* x, const A* packed, T* result) const {
    for (int64_t group = from; group < to; ++group)
      for (int64_t v = 0, block; v < vectors; v += block) {
        block = block_of(vectors - v, 3);
        const A* w = packed + (group * vectors + v) * g.sources * L;
        int64_t filters = minimum(block * L, g.results - v * L);
        const T* source = x + group * g.sources;
        T* to_group = result + group * g.results + v * L;
        if (block == 1)
          tiles_dense<MANY ? 14 : 12, 1>(pixels, source, w, filters, to_group);
        else if (block == 2)
          tiles_dense<MANY ? 14 : 6, 2>(pixels, source, w, filters, to_group);
        else
          tiles_dense<MANY ? 7 : 4, 3>(pixels, source, w, filters, to_group);
      }
  }

  // A rest of up to half a tile goes to smaller ones, a longer one to a tile that ends with it and sums some pixels to the same again.
  template <int Q, int V>
  void tiles_dense(int64_t pixels, const T* x, const A* w, int64_t filters, T* result) const {
    bool streams = p.large && whole_lines<T, V>(result, g.results);
    for (int64_t q = 0; q < pixels; q += Q) {
      if constexpr (Q > 1)
        if (int64_t rest = pixels - q; q == 0 ? rest < Q : rest <= Q / 2)
          return tiles_dense<Q / 2, V>(rest, x + q * g.source_channels(), w, filters, result + q * g.result_channels());
      q = minimum(q, pixels - Q);
      Vector<T> sums[Q][V] = {};
      multiply_dense<T, Q, V>(sums, x + q * g.source_channels(), g.source_channels(), w, g.sources);
      T* to = result + q * g.result_channels();
      UNROLL for (int i = 0; i < Q; ++i, to += g.result_channels())
        UNROLL for (int v = 0; v < V; ++v)
          if (filters >= (v + 1) * L)
            streams ? stream(to + v * L, sums[i][v]) : store(to + v * L, sums[i][v]);
          else
            store_first(to + v * L, sums[i][v], filters - v * L);
    }
  }

  // Asks for the sources of a tile to come.
  template <int Q>
  void fetch(const T* x, const int64_t* offsets) const {
    for (int q = 0; q < Q; ++q)
      for (int64_t c = 0; c < g.sources && offsets[q] >= 0; c += LINE / sizeof(T)) __builtin_prefetch(x + offsets[q] + c, 0, 2);
  }

  template <int Q, int V>
  void tiles(const T* x, const A* weights, const T* zeros, const List<int64_t>& index, const List<int64_t>& offsets,
             int64_t padded, const List<int64_t>& outputs, int64_t filters, T* result, bool first_reader) const {
    bool streams = p.large && whole_lines<T, V>(result, g.results);
    for (int64_t first = 0; first < outputs.size; first += Q) {
      Vector<T> sums[Q][V] = {};
      if (first_reader && first + Q < outputs.size) fetch<Q>(x, offsets.data + offsets.size - padded + first + Q);
      for (int64_t t = 0; t < index.size; ++t) {
        const T* source[Q];
        const int64_t* offset = offsets.data + t * padded + first;
        int64_t missing = -1;  // where all sources are on the padding
        UNROLL for (int q = 0; q < Q; ++q) missing &= offset[q];
        if (missing == -1) continue;
        UNROLL for (int q = 0; q < Q; ++q) source[q] = offset[q] < 0 ? zeros + (-1 - offset[q]) : x + offset[q];
        const A* w = weights + index[t] * g.sources * V * L;
        if (offset[0] == -1)
          multiply<1, Q, T>(sums, source, w, length);
        else if (offset[Q - 1] == -1)
          multiply<0, Q - 1, T>(sums, source, w, length);
        else
          multiply<0, Q, T>(sums, source, w, length);
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
