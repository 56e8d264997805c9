// Role w of narrow groups: lanes are channels of x (see lanes.h).
//
// The register tile is W neighbouring taps of a row by V filters, and it runs along the pixels of a stretch:
//
//   for each pixel:  V loads of y;  for each of W taps: 1 load of x, V multiply-adds
//
// V + W loads for V * W multiply-adds. The y of each filter is spread beforehand, once per stretch and block,
// so that every lane of x meets its own group's y.
//
// Columns where some of the W taps fall on the padding choose among the taps; the columns between them do
// not.

#pragma once

#include "reduce/reduce.h"
#include "vectors/lanes.h"

namespace gconv {
namespace {

struct NarrowPass {  // of the tile over the rows of a stretch
  const RowPair* rows;
  int64_t count;
  int64_t first, from, to, last;  // columns: [from, to) meets all taps, [first, last) some
  int64_t x_column, x_tap, y_column;
  int64_t source, source_column, source_tap,
      sources;  // pixels along the row of x: of column 0 and tap 0, and the steps
};

template <class T, int W, int V, bool PART>
void sum_taps(const T* x, const Wide<T>* y, const NarrowPass& pass, Wide<T>* partial, int64_t tap_stride,
              int64_t filter_stride, int64_t lanes) {
  constexpr int L = LANES<Wide<T>>;
  Vector<T> sums[W][V] = {};
  for (int64_t s = 0; s < pass.count; ++s) {
    const T* tap = x + pass.rows[s].x + pass.first * pass.x_column;
    const Wide<T>* at = y + pass.rows[s].pixel * pass.y_column;
    auto column = [&](auto edge, int64_t source) __attribute__((always_inline)) {
      Vector<T> ours[V];
      UNROLL for (int v = 0; v < V; ++v) ours[v] = load(at + v * L);
      UNROLL for (int w = 0; w < W; ++w) {
        int64_t pixel = source + w * pass.source_tap;
        if (edge && (pixel < 0 || pixel >= pass.sources)) continue;
        Vector<T> theirs = PART ? load_first(tap + w * pass.x_tap, lanes) : load(tap + w * pass.x_tap);
        UNROLL for (int v = 0; v < V; ++v) sums[w][v] += theirs * ours[v];
      }
      tap += pass.x_column, at += pass.y_column;
    };
    int64_t c = pass.first;
    for (; c < pass.from; ++c) column(True{}, pass.source + c * pass.source_column);
    for (; c < pass.to; ++c) column(False{}, 0);
    for (; c < pass.last; ++c) column(True{}, pass.source + c * pass.source_column);
  }
  UNROLL for (int w = 0; w < W; ++w) UNROLL
  for (int v = 0; v < V; ++v) {
    Wide<T>* to = partial + w * tap_stride + v * filter_stride;
    store(to, load(to) + sums[w][v]);
  }
}

template <class T>
class ReduceNarrow {
  using A = Wide<T>;
  static constexpr int L = LANES<A>;
  const Plan& plan;
  const Problem& p;
  Lanes<A> lanes;
  int64_t taps;  // partial sums: [block][vector][filter][tap][lane]
  Stretches stretches;

 public:
  ReduceNarrow(const Plan& plan, const Problem& p)
      : plan(plan), p(p), lanes(p.groups, p.channels), taps(taps_of(p)), stretches(plan, p) {}

  void run(const T* x, const T* y, T* result, void* scratch, const Parallel& parallel) const {
    A* partial = static_cast<A*>(scratch);
    int64_t parts = minimum(lanes.blocks, ceil_div(4 * parallel.threads, plan.partitions));
    for_each(parallel, plan.partitions * parts, 1 << 14, [&](int64_t unit) {
      int64_t partition = unit / parts, part = unit % parts;
      int64_t from = lanes.blocks * part / parts, to = lanes.blocks * (part + 1) / parts;
      A* own = partial + partition * plan.packed;
      int64_t block_size = plan.packed / maximum(lanes.blocks, 1);
      memset(own + from * block_size, 0, (to - from) * block_size * sizeof(A));
      List<RowPair> rows;
      List<A> spread;
      for (int64_t i = stretches.first_of(partition); i < stretches.first_of(partition + 1); ++i)
        sum(i, from, to, x, y, own, rows, spread);
    });
    int64_t work = lanes.vectors * p.filters * taps * (plan.partitions + L);
    for_each(parallel, lanes.blocks, work, [&](int64_t block) { add(block, partial, result); });
  }

 private:
  void sum(int64_t stretch, int64_t from, int64_t to, const T* x, const T* y, A* partial, List<RowPair>& rows,
           List<A>& spread) const {
    for (int64_t block = from; block < to; ++block) {
      spread_y(stretch, block, y, spread);
      for (int64_t d = 0; d < p.window[0]; ++d)
        for (int64_t h = 0; h < p.window[1]; ++h) {
          stretches.rows_of(stretch, d, h, rows);
          if (!rows.size) continue;
          int64_t tiles = ceil_div(p.window[2], NARROW_TAPS);
          for (int64_t i = 0; i < tiles; ++i) {
            int64_t w = p.window[2] * i / tiles, wide = p.window[2] * (i + 1) / tiles - w;
            NarrowPass pass = pass_of(stretch, w, wide, rows);
            if (pass.first == pass.last) continue;
            int64_t tap = (d * p.window[1] + h) * p.window[2] + w;
            for (int64_t v = 0; v < lanes.vectors; ++v) {
              int64_t loaded = lanes.loaded(block, v);
              A* sums = partial + ((block * lanes.vectors + v) * p.filters * taps + tap) * L;
              const T* source = x + lanes.first_channel(block) + v * L +
                                (w * p.dilation[2] - p.low[2]) * stretches.in_channels;
              choose_taps(wide, loaded < L, source, spread.data, pass, sums, L, taps * L, loaded);
            }
          }
        }
    }
  }

  NarrowPass pass_of(int64_t stretch, int64_t w, int64_t wide, const List<RowPair>& rows) const {
    NarrowPass s;
    s.rows = rows.data, s.count = rows.size;
    s.first = stretches.first_column(stretch), s.last = s.first + stretches.columns_in(stretch);
    s.from = s.first, s.to = s.last;
    for (int64_t i = w; i < w + wide; ++i) {
      int64_t from, to;
      stretches.columns_of(stretch, i, from, to);
      s.from = maximum(s.from, from), s.to = minimum(s.to, to);
    }
    if (s.to <= s.from) s.from = s.to = s.last;
    s.x_column = p.strides[2] * stretches.in_channels, s.x_tap = p.dilation[2] * stretches.in_channels;
    s.y_column = p.filters * L;
    s.source = w * p.dilation[2] - p.low[2], s.source_column = p.strides[2], s.source_tap = p.dilation[2],
    s.sources = p.in[2];
    return s;
  }

  // [pixel of the stretch][filter][lane]: the y of each lane's group.
  void spread_y(int64_t stretch, int64_t block, const T* y, List<A>& spread) const {
    int64_t rows = stretches.rows_in(stretch), columns = stretches.columns_in(stretch);
    spread.reserve(rows * columns * p.filters * L);
    A* to = spread.data;
    // The lanes beyond a block's last group repeat its first: what they sum is dropped.
    int32_t index[L], largest = 0;
    for (int64_t l = 0; l < L; ++l) {
      index[l] = lanes.vectors == 1 && l < lanes.used(block, 0) ? l / p.channels * p.filters : 0;
      largest = maximum(largest, index[l]);
    }
    int64_t first = stretches.first_row(stretch) * p.out[2] + stretches.first_column(stretch),
            skip = p.out[2] - columns;
    int64_t offset = first * stretches.out_channels + block * lanes.per_block * p.filters;
    int64_t end = p.batch * p.out[0] * p.out[1] * p.out[2] * stretches.out_channels;
    for (int64_t r = 0; r < rows; ++r, offset += skip * stretches.out_channels)
      for (int64_t c = 0; c < columns; ++c, offset += stretches.out_channels)
        for (int64_t f = 0; f < p.filters; ++f, to += L)
          store(to, gather(y + offset + f, index, largest, end - offset - f));
  }

  // Calls sum_taps with compile-time W and V, and as many of the filters at a time as registers hold.
  void choose_taps(int64_t w, bool part, const T* x, const A* y, const NarrowPass& s, A* sums, int64_t tap,
                   int64_t filter, int64_t lanes) const {
    for (int64_t v = 0, chunk; v < p.filters; v += chunk) {
      int64_t left = p.filters - v;
      chunk = left >= plan.vectors ? plan.vectors : left >= 2 ? 2 : 1;
#define CASE(W, V)                                                                      \
  if (w == W && chunk == V) {                                                           \
    if (part)                                                                           \
      sum_taps<T, W, V, true>(x, y + v * L, s, sums + v * filter, tap, filter, lanes);  \
    else                                                                                \
      sum_taps<T, W, V, false>(x, y + v * L, s, sums + v * filter, tap, filter, lanes); \
    continue;                                                                           \
  }
      CASE(1, 4)
      CASE(2, 4)
      CASE(3, 4) CASE(1, 2) CASE(2, 2) CASE(3, 2) CASE(4, 2) CASE(5, 2) CASE(6, 2) CASE(7, 2) CASE(1, 1)
          CASE(2, 1) CASE(3, 1) CASE(4, 1) CASE(5, 1) CASE(6, 1) CASE(7, 1)
#undef CASE
    }
  }

  // The sum of the partial sums of a block's groups, in the kernel's layout.
  void add(int64_t block, const A* partial, T* result) const {
    for (int64_t v = 0; v < lanes.vectors; ++v) {
      int64_t offset[L], used = lanes.offsets(block, v, p.filters, stretches.out_channels, offset);
      for (int64_t f = 0; f < p.filters; ++f)
        for (int64_t tap = 0; tap < taps; ++tap) {
          const A* from = partial + (((block * lanes.vectors + v) * p.filters + f) * taps + tap) * L;
          Vector<T> sum = load(from);
          for (int64_t i = 1; i < plan.partitions; ++i) sum += load(from + i * plan.packed);
          T* to = result + tap * p.channels * stretches.out_channels + f;
          for (int64_t l = 0; l < used; ++l) to[offset[l]] = rounded<T>(sum[l]);
        }
    }
  }
};

}  // namespace
}  // namespace gconv
