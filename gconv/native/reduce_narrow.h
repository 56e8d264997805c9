// Role w of narrow groups: lanes are channels of x (see lanes.h).
//
// The register tile is W neighbouring taps of a row by V filters, and it runs along the pixels of a patch:
//
//   for each pixel:  V loads of y;  for each of W taps: 1 load of x, V multiply-adds
//
// V + W loads for V * W multiply-adds. The y of each filter is spread beforehand, once per patch and block, so that every lane of x
// meets its own group's y.
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

template <class T, int W, int V, bool PART>
void sum_taps(const T* x, const Wide<T>* y, const Strip& strip, Wide<T>* partial, int64_t tap_stride, int64_t filter_stride,
              int64_t lanes) {
  constexpr int L = LANES<Wide<T>>;
  Vector<T> sums[W][V] = {};
  for (int64_t s = 0; s < strip.count; ++s) {
    const T* tap = x + strip.segments[s].x + strip.first * strip.x_column;
    const Wide<T>* at = y + strip.segments[s].pixel * strip.y_column;
    auto column = [&](auto edge, int64_t source) __attribute__((always_inline)) {
      Vector<T> ours[V];
      UNROLL for (int v = 0; v < V; ++v) ours[v] = load(at + v * L);
      UNROLL for (int w = 0; w < W; ++w) {
        int64_t pixel = source + w * strip.source_tap;
        if (edge && (pixel < 0 || pixel >= strip.sources)) continue;
        Vector<T> theirs = PART ? load_first(tap + w * strip.x_tap, lanes) : load(tap + w * strip.x_tap);
        UNROLL for (int v = 0; v < V; ++v) sums[w][v] += theirs * ours[v];
      }
      tap += strip.x_column, at += strip.y_column;
    };
    int64_t c = strip.first;
    for (; c < strip.from; ++c) column(True{}, strip.source + c * strip.source_column);
    for (; c < strip.to; ++c) column(False{}, 0);
    for (; c < strip.last; ++c) column(True{}, strip.source + c * strip.source_column);
  }
  UNROLL for (int w = 0; w < W; ++w)
    UNROLL for (int v = 0; v < V; ++v) {
      Wide<T>* to = partial + w * tap_stride + v * filter_stride;
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
  Patches patches;

 public:
  explicit ReduceNarrow(const Problem& p)
      : p(p), lanes(p.groups, p.channels), taps(p.window[0] * p.window[1] * p.window[2]),
        partial_size(lanes.blocks * lanes.vectors * p.filters * taps * L), patches(p, pixels(p), partial_size, sizeof(A)) {}

  int64_t scratch_bytes() const { return patches.partitions * partial_size * (int64_t)sizeof(A); }

  void run(const T* x, const T* y, T* result, void* scratch, const Parallel& parallel) const {
    A* partial = static_cast<A*>(scratch);
    int64_t pieces = minimum(lanes.blocks, ceil_div(4 * parallel.threads, patches.partitions));
    for_each(parallel, patches.partitions * pieces, 1 << 14, [&](int64_t unit) {
      int64_t partition = unit / pieces, piece = unit % pieces;
      int64_t from = lanes.blocks * piece / pieces, to = lanes.blocks * (piece + 1) / pieces;
      A* own = partial + partition * partial_size;
      int64_t block_size = partial_size / maximum(lanes.blocks, 1);
      memset(own + from * block_size, 0, (to - from) * block_size * sizeof(A));
      List<Segment> segments;
      List<A> spread;
      for (int64_t i = patches.first_patch(partition); i < patches.first_patch(partition + 1); ++i)
        patch(i, from, to, x, y, own, segments, spread);
    });
    int64_t work = lanes.vectors * p.filters * taps * (patches.partitions + L);
    for_each(parallel, lanes.blocks, work, [&](int64_t block) { add(block, partial, result); });
  }

 private:
  static int64_t pixels(const Problem& p) {
    int64_t bytes = p.groups * (p.channels + p.filters) * (int64_t)sizeof(T);
    return maximum(16, minimum(maximum(16, 512 / p.filters), (1 << 17) / bytes));
  }

  void patch(int64_t patch, int64_t from, int64_t to, const T* x, const T* y, A* partial, List<Segment>& segments,
             List<A>& spread) const {
    int64_t stride = taps * L;
    for (int64_t block = from; block < to; ++block) {
      spread_y(patch, block, y, spread);
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
              choose_taps(wide, loaded < L, source, spread.data, strip, sums, L, stride, loaded);
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
    s.y_column = p.filters * L;
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

  // Calls sum_taps with compile-time W and V, and as many of the filters at a time as registers hold.
  void choose_taps(int64_t w, bool part, const T* x, const A* y, const Strip& s, A* sums, int64_t tap, int64_t filter,
                   int64_t lanes) const {
    for (int64_t v = 0, chunk; v < p.filters; v += chunk) {
      int64_t left = p.filters - v;
      chunk = left >= 4 && w <= 3 ? 4 : left >= 2 ? 2 : 1;
#define CASE(W, V)                                                                                  \
  if (w == W && chunk == V) {                                                                       \
    if (part)                                                                                       \
      sum_taps<T, W, V, true>(x, y + v * L, s, sums + v * filter, tap, filter, lanes);              \
    else                                                                                            \
      sum_taps<T, W, V, false>(x, y + v * L, s, sums + v * filter, tap, filter, lanes);             \
    continue;                                                                                       \
  }
      CASE(1, 4) CASE(2, 4) CASE(3, 4)
      CASE(1, 2) CASE(2, 2) CASE(3, 2) CASE(4, 2) CASE(5, 2) CASE(6, 2) CASE(7, 2)
      CASE(1, 1) CASE(2, 1) CASE(3, 1) CASE(4, 1) CASE(5, 1) CASE(6, 1) CASE(7, 1)
#undef CASE
    }
  }

  // The sum of the partial sums of a block's groups, in the kernel's layout.
  void add(int64_t block, const A* partial, T* result) const {
    for (int64_t v = 0; v < lanes.vectors; ++v) {
      int64_t offset[L], used = lanes.offsets(block, v, p.filters, patches.out_channels, offset);
      for (int64_t f = 0; f < p.filters; ++f)
        for (int64_t tap = 0; tap < taps; ++tap) {
          const A* from = partial + (((block * lanes.vectors + v) * p.filters + f) * taps + tap) * L;
          Vector<T> sum = load(from);
          for (int64_t i = 1; i < patches.partitions; ++i) sum += load(from + i * partial_size);
          T* to = result + tap * p.channels * patches.out_channels + f;
          for (int64_t l = 0; l < used; ++l) to[offset[l]] = rounded<T>(sum[l]);
        }
    }
  }
};

}  // namespace
}  // namespace gconv
