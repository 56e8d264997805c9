// Role w of narrow groups, depthwise above all: lanes are channels of x (see lanes.h).
//
// The register tile is W neighbouring taps of a row by V vectors, and it runs along the pixels of a patch:
//
//   for each pixel:  V loads of y;  for each of W taps: the loads of x, V multiply-adds
//
// Depthwise, the V vectors are neighbouring blocks, with an x each: V + W * V loads for W * V multiply-adds. With more than one
// channel or filter per group they are V filters that share x: V + W loads for W * V. Their y is spread beforehand, once per
// patch and block, so that every lane of x meets its own group's y.
//
// Columns where some of the W taps fall on the padding choose among the taps; the columns between them do not.

#pragma once

#include "lanes.h"
#include "reduce.h"

namespace gconv {
namespace {

struct Strip {  // what a register tile runs over
  const Segment* segments;
  int64_t count;
  int64_t first, from, to, last;  // columns: [from, to) meets all taps, [first, last) some
  int64_t x_column, x_tap, y_column;
  int64_t source, source_column, source_tap, sources;  // pixels along the row of x: of column 0 and tap 0, and the steps
};

template <class T, class Y, int W, int V, bool SHARED, bool PART>
void sum_taps(const T* x, const Y* y, const Strip& strip, Wide<T>* partial, int64_t tap_stride, int64_t vector_stride,
              int64_t lanes) {
  constexpr int L = LANES<Wide<T>>;
  Vector<T> sums[W][V] = {};
  for (int64_t s = 0; s < strip.count; ++s) {
    const T* row = x + strip.segments[s].x;
    const Y* ys = SHARED ? y + strip.segments[s].pixel * strip.y_column : y + strip.segments[s].y;
    auto edge = [&](int64_t from, int64_t to) __attribute__((always_inline)) {
      for (int64_t column = from; column < to; ++column) {
        Vector<T> ours[V];
        const Y* at = ys + (SHARED ? column - strip.first : column) * strip.y_column;
        UNROLL for (int v = 0; v < V; ++v) ours[v] = PART && !SHARED ? load_first(at + v * L, lanes) : load(at + v * L);
        const T* tap = row + column * strip.x_column;
        int64_t source = strip.source + column * strip.source_column;
        UNROLL for (int w = 0; w < W; ++w, source += strip.source_tap) {
          if (source < 0 || source >= strip.sources) continue;
          UNROLL for (int v = 0; v < V; ++v) {
            const T* from = tap + w * strip.x_tap + (SHARED ? 0 : v * L);
            sums[w][v] += (PART ? load_first(from, lanes) : load(from)) * ours[v];
          }
        }
      }
    };
    edge(strip.first, strip.from);
    const T* tap = row + strip.from * strip.x_column;
    const Y* at = ys + (SHARED ? strip.from - strip.first : strip.from) * strip.y_column;
    for (int64_t column = strip.from; column < strip.to; ++column, tap += strip.x_column, at += strip.y_column) {
      Vector<T> ours[V];
      UNROLL for (int v = 0; v < V; ++v) ours[v] = PART && !SHARED ? load_first(at + v * L, lanes) : load(at + v * L);
      UNROLL for (int w = 0; w < W; ++w) {
        if (SHARED) {
          Vector<T> theirs = PART ? load_first(tap + w * strip.x_tap, lanes) : load(tap + w * strip.x_tap);
          UNROLL for (int v = 0; v < V; ++v) sums[w][v] += theirs * ours[v];
        } else {
          UNROLL for (int v = 0; v < V; ++v) {
            const T* from = tap + w * strip.x_tap + v * L;
            sums[w][v] += (PART ? load_first(from, lanes) : load(from)) * ours[v];
          }
        }
      }
    }
    edge(strip.to, strip.last);
  }
  UNROLL for (int w = 0; w < W; ++w)
    UNROLL for (int v = 0; v < V; ++v) {
      Wide<T>* to = partial + w * tap_stride + v * vector_stride;
      store(to, load(to) + sums[w][v]);
    }
}

template <class T>
class ReduceNarrow {
  using A = Wide<T>;
  static constexpr int L = LANES<A>;
  static constexpr int64_t MOST_TAPS = 7;
  const Problem& p;
  Lanes<A> lanes;
  int64_t taps, partial_size;  // [block][vector][filter][tap][lane]
  bool depthwise;
  Patches patches;

 public:
  explicit ReduceNarrow(const Problem& p)
      : p(p), lanes(p.groups, p.channels), taps(p.window[0] * p.window[1] * p.window[2]),
        partial_size(lanes.blocks * lanes.vectors * p.filters * taps * L), depthwise(p.channels == 1 && p.filters == 1),
        patches(p, pixels(p), partial_size, sizeof(A)) {}

  int64_t scratch_bytes() const { return patches.partitions * partial_size * (int64_t)sizeof(A); }

  void run(const T* x, const T* y, T* result, void* scratch, const Parallel& parallel) const {
    A* partial = static_cast<A*>(scratch);
    int64_t pieces = minimum(ceil_div(lanes.blocks, 4), ceil_div(4 * parallel.threads, patches.partitions));
    for_each(parallel, patches.partitions * pieces, 1 << 14, [&](int64_t unit) {
      int64_t partition = unit / pieces, piece = unit % pieces, quads = ceil_div(lanes.blocks, 4);
      int64_t from = quads * piece / pieces * 4, to = minimum(quads * (piece + 1) / pieces * 4, lanes.blocks);
      A* own = partial + partition * partial_size;
      int64_t block_size = partial_size / maximum(lanes.blocks, 1);
      memset(own + from * block_size, 0, (to - from) * block_size * sizeof(A));
      List<Segment> segments;
      List<A> spread;
      for (int64_t i = patches.first_patch(partition); i < patches.first_patch(partition + 1); ++i)
        patch(i, from, to, x, y, own, segments, spread);
    });
    for_each(parallel, lanes.blocks, lanes.vectors * p.filters * taps * (patches.partitions + L), [&](int64_t block) { add(block, partial, result); });
  }

 private:
  static int64_t pixels(const Problem& p) {
    int64_t bytes = p.groups * (p.channels + p.filters) * (int64_t)sizeof(T);
    int64_t most = p.channels == 1 && p.filters == 1 ? 512 : maximum(16, 512 / p.filters);
    return maximum(16, minimum(most, (1 << 17) / bytes));
  }

  void patch(int64_t patch, int64_t from, int64_t to, const T* x, const T* y, A* partial, List<Segment>& segments,
             List<A>& spread) const {
    int64_t stride = taps * L;
    for (int64_t block = from, count; block < to; block += count) {
      count = 1;
      bool part = lanes.loaded(block, 0) < L;
      if (depthwise && !part && block + 4 <= to && lanes.loaded(block + 3, 0) == L) count = 4;
      if (!depthwise) spread_y(patch, block, y, spread);
      for (int64_t d = 0; d < p.window[0]; ++d)
        for (int64_t h = 0; h < p.window[1]; ++h) {
          patches.segments(patch, d, h, segments);
          if (!segments.size) continue;
          int64_t tiles = ceil_div(p.window[2], MOST_TAPS);
          for (int64_t i = 0; i < tiles; ++i) {
            int64_t w = p.window[2] * i / tiles, wide = p.window[2] * (i + 1) / tiles - w;
            Strip strip = strip_of(patch, w, wide, segments);
            if (strip.first == strip.last) continue;
            int64_t tap = (d * p.window[1] + h) * p.window[2] + w;
            for (int64_t v = 0; v < lanes.vectors; ++v) {
              int64_t loaded = lanes.loaded(block, v);
              A* sums = partial + ((block * lanes.vectors + v) * p.filters * taps + tap) * L;
              const T* source = x + lanes.first_channel(block) + v * L + (w * p.dilation[2] - p.low[2]) * patches.in_channels;
              if (depthwise)
                choose_taps<T, false>(wide, count, loaded < L, source, y + block * L, strip, sums, L, stride, loaded);
              else
                choose_taps<A, true>(wide, p.filters, loaded < L, source, spread.data, strip, sums, L, stride, loaded);
            }
          }
        }
    }
  }

  Strip strip_of(int64_t patch, int64_t w, int64_t wide, const List<Segment>& segments) const {
    Strip s;
    s.segments = segments.data, s.count = segments.size;
    s.first = patches.first_column(patch), s.last = s.first + patches.columns_in(patch);
    s.from = s.first, s.to = s.last;
    for (int64_t i = w; i < w + wide; ++i) {
      int64_t from, to;
      patches.columns_of(patch, i, from, to);
      s.from = maximum(s.from, from), s.to = minimum(s.to, to);
    }
    if (s.to <= s.from) s.from = s.to = s.last;
    s.x_column = p.strides[2] * patches.in_channels, s.x_tap = p.dilation[2] * patches.in_channels;
    s.y_column = depthwise ? patches.out_channels : p.filters * L;
    s.source = w * p.dilation[2] - p.low[2], s.source_column = p.strides[2], s.source_tap = p.dilation[2], s.sources = p.in[2];
    return s;
  }

  // [pixel of the patch][filter][lane]: the y of each lane's group.
  void spread_y(int64_t patch, int64_t block, const T* y, List<A>& spread) const {
    int64_t rows = patches.rows_in(patch), columns = patches.columns_in(patch);
    spread.reserve(rows * columns * p.filters * L);
    A* to = spread.data;
    // The lanes beyond a block's last group repeat its first: what they sum is dropped.
    int32_t index[L], largest = 0;
    for (int64_t l = 0; l < L; ++l) {
      index[l] = lanes.vectors == 1 && l < lanes.used(block, 0) ? l / p.channels * p.filters : 0;
      largest = maximum(largest, index[l]);
    }
    int64_t first = patches.first_row(patch) * p.out[2] + patches.first_column(patch), skip = p.out[2] - columns;
    int64_t offset = first * patches.out_channels + block * lanes.per_block * p.filters;
    int64_t end = p.batch * p.out[0] * p.out[1] * p.out[2] * patches.out_channels;
    for (int64_t r = 0; r < rows; ++r, offset += skip * patches.out_channels)
      for (int64_t c = 0; c < columns; ++c, offset += patches.out_channels)
        for (int64_t f = 0; f < p.filters; ++f, to += L) store(to, gather(y + offset + f, index, largest, end - offset - f));
  }

  // Calls sum_taps with compile-time W and V, and as many of the V vectors at a time as registers hold.
  template <class Y, bool SHARED>
  static void choose_taps(int64_t w, int64_t vectors, bool part, const T* x, const Y* y, const Strip& s, A* sums, int64_t tap,
                          int64_t vector, int64_t lanes) {
    for (int64_t v = 0, chunk; v < vectors; v += chunk) {
      int64_t left = vectors - v;
      chunk = left >= 4 && w <= 3 ? 4 : left >= 2 && w <= 7 ? 2 : 1;
      const T* xs = SHARED ? x : x + v * L;
      const Y* ys = y + v * L;
      A* to = sums + v * vector;
#define CASE(W, V)                                                                                \
  if (w == W && chunk == V) {                                                                     \
    if (part && (SHARED || V == 1))                                                               \
      sum_taps<T, Y, W, V, SHARED, SHARED || V == 1>(xs, ys, s, to, tap, vector, lanes);          \
    else                                                                                          \
      sum_taps<T, Y, W, V, SHARED, false>(xs, ys, s, to, tap, vector, lanes);                     \
    continue;                                                                                     \
  }
      CASE(1, 4) CASE(2, 4) CASE(3, 4)
      CASE(1, 2) CASE(2, 2) CASE(3, 2) CASE(4, 2) CASE(5, 2) CASE(6, 2) CASE(7, 2)
      CASE(1, 1) CASE(2, 1) CASE(3, 1) CASE(4, 1) CASE(5, 1) CASE(6, 1) CASE(7, 1)
#undef CASE
    }
  }

  // The sum of the partial sums of a block's groups, in the kernel's layout.
  void add(int64_t block, const A* partial, T* result) const {
    for (int64_t v = 0; v < lanes.vectors; ++v)
      for (int64_t f = 0; f < p.filters; ++f)
        for (int64_t tap = 0; tap < taps; ++tap) {
          const A* from = partial + (((block * lanes.vectors + v) * p.filters + f) * taps + tap) * L;
          Vector<T> sum = load(from);
          for (int64_t i = 1; i < patches.partitions; ++i) sum += load(from + i * partial_size);
          for (int64_t l = 0; l < lanes.used(block, v); ++l) {
            int64_t channel = v * L + l, group = block * lanes.per_block + channel / p.channels;
            result[(tap * p.channels + channel % p.channels) * patches.out_channels + group * p.filters + f] = rounded<T>(sum[l]);
          }
        }
  }
};

}  // namespace
}  // namespace gconv
