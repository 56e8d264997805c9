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
  int64_t tap, taps;              // of a row of taps, from the first on so many
  int64_t first, from, to, last;  // columns: [from, to) meets all taps, [first, last) some
  int64_t x_column, x_tap, y_column;
  int64_t source, source_column, source_tap,
      sources;  // pixels along the row of x: of column 0 and tap 0, and the steps
};

template <class A, int W, int V>
__attribute__((noinline)) void sum_taps(const A* x, const A* y, const NarrowPass& pass, A* partial,
                                        int64_t tap_stride, int64_t filter_stride) {
  constexpr int L = LANES<A>;
  Vector<A> sums[W][V] = {};
  for (int64_t s = 0; s < pass.count; ++s) {
    const A* tap = x + pass.rows[s].x + pass.first * pass.x_column;
    const A* at = y + pass.rows[s].pixel * pass.y_column;
    auto column = [&](auto edge, int64_t source) __attribute__((always_inline)) {
      Vector<A> ours[V];
      UNROLL for (int v = 0; v < V; ++v) ours[v] = load(at + v * L);
      UNROLL for (int w = 0; w < W; ++w) {
        int64_t pixel = source + w * pass.source_tap;
        if (edge && (pixel < 0 || pixel >= pass.sources)) continue;
        Vector<A> theirs = load(tap + w * pass.x_tap);
        UNROLL for (int v = 0; v < V; ++v) sums[w][v] += theirs * ours[v];
      }
      tap += pass.x_column, at += pass.y_column;
    };
    for (int64_t c = pass.first; c < pass.last; ++c) {
      for (; c >= pass.from && c < pass.to; ++c) column(False{}, 0);
      if (c < pass.last) column(True{}, pass.source + c * pass.source_column);
    }
  }
  UNROLL for (int w = 0; w < W; ++w) UNROLL
  for (int v = 0; v < V; ++v) {
    A* to = partial + w * tap_stride + v * filter_stride;
    store(to, load(to) + sums[w][v]);
  }
}

template <class A>
class ReduceNarrow {
  static constexpr int L = LANES<A>;
  const Plan& plan;
  const Problem& p;
  Type type;
  bool numbers;   // whether elements are numbers already
  int64_t bytes;  // of an element
  Lanes<A> lanes;
  int64_t taps;  // partial sums: [block][vector][filter][tap][lane]
  Stretches stretches;

 public:
  ReduceNarrow(const Plan& plan, Type type, const Problem& p)
      : plan(plan), p(p), type(type), numbers(are_numbers<A>(type)), bytes(bytes_of<A>(type)),
        lanes(p.groups, p.channels), taps(taps_of(p)), stretches(plan, p) {}

  void run(const void* x, const void* y, void* result, const Scratch& scratch,
           const Parallel& parallel) const {
    A* partial = static_cast<A*>(scratch.rest);
    int64_t parts = minimum(lanes.blocks, ceil_div(4 * parallel.threads, plan.partitions));
    for_each(parallel, plan.partitions * parts, 1 << 14, [&](int64_t unit) {
      int64_t partition = unit / parts, part = unit % parts;
      int64_t from = lanes.blocks * part / parts, to = lanes.blocks * (part + 1) / parts;
      A* own = partial + partition * plan.packed;
      int64_t block_size = plan.packed / maximum(lanes.blocks, 1);
      memset(own + from * block_size, 0, (to - from) * block_size * sizeof(A));
      Lists lists;
      for (int64_t i = stretches.first_of(partition); i < stretches.first_of(partition + 1); ++i) {
        list_passes(i, lists.passes);
        for (int64_t block = from; block < to; ++block)
          sum(i, block, static_cast<const char*>(x), y, own, lists);
      }
    });
    int64_t work = lanes.vectors * p.filters * taps * (plan.partitions + L);
    for_each(parallel, lanes.blocks, work, [&](int64_t block) {
      with_element<A>(result_type(type, p),
                      [&](auto element) { add(block, partial, static_cast<decltype(element)*>(result)); });
    });
  }

 private:
  struct Lists {              // of a stretch
    List<NarrowPass> passes;  // over its columns, for each tile of a row of taps
    List<RowPair> rows;
    List<A> y;         // [pixel][filter][lane]: the y of each lane's group
    KeptRows<A> near;  // the sources of a block's vector that were read, [column][lane]
  };

  void sum(int64_t stretch, int64_t block, const char* x, const void* y, A* partial, Lists& lists) const {
    with_element<A>(type, [&](auto element) {
      spread_y(stretch, block, static_cast<const decltype(element)*>(y), lists.y);
    });
    for (int64_t v = 0; v < lanes.vectors; ++v) {
      int64_t first_channel = lanes.first_channel(block) + v * L;
      lists.near.forget();
      for (int64_t d = 0; d < p.window[0]; ++d)
        for (int64_t h = 0; h < p.window[1]; ++h) {
          stretches.rows_of(stretch, d, h, lists.rows);
          if (!lists.rows.size) continue;
          bool direct =
              loads(block, v, lists.rows[lists.rows.size - 1]);  // else sources are read as numbers first
          int64_t column = direct ? stretches.in_channels : L;
          const A* source = reinterpret_cast<const A*>(x) + first_channel;
          if (!direct) {
            bring_near(stretch, x + first_channel * bytes, lanes.loaded(block, v), lists);
            source = lists.near.all();
          }
          for (NarrowPass& pass : lists.passes) {
            pass.rows = lists.rows.data, pass.count = lists.rows.size;
            pass.x_column = p.strides[2] * column, pass.x_tap = p.dilation[2] * column;
            int64_t tap = (d * p.window[1] + h) * p.window[2] + pass.tap;
            A* sums = partial + ((block * lanes.vectors + v) * p.filters * taps + tap) * L;
            choose_taps(pass.taps, source + pass.source * column, lists.y.data, pass, sums);
          }
        }
    }
  }

  // Whether a block's vector is loaded from x, up to some row. The sums of lanes beyond the block are
  // dropped; but nothing beyond x may be loaded.
  bool loads(int64_t block, int64_t v, const RowPair& last) const {
    int64_t row = p.in[2] * stretches.in_channels,
            beyond = lanes.first_channel(block) + (v + 1) * L - stretches.in_channels;
    return numbers && last.x + row + maximum(beyond, 0) <= p.batch * p.in[0] * p.in[1] * row;
  }

  // Reads the columns that the listed rows of a stretch meet as numbers. The rows then begin where these lie.
  void bring_near(int64_t stretch, const char* x, int64_t count, Lists& lists) const {
    int64_t first = stretches.first_column(stretch) * p.strides[2] - p.low[2];
    int64_t last =
        first + (stretches.columns_in(stretch) - 1) * p.strides[2] + (p.window[2] - 1) * p.dilation[2];
    first = maximum(first, 0), last = minimum(last, p.in[2] - 1);
    int64_t columns = maximum(0, last - first + 1);
    lists.near.begin(plan.stretch_rows, first, columns * L);
    for (RowPair& row : lists.rows)
      row.x = lists.near.place(row.x, [&](A* to) {
        with_element<A>(type, [&](auto element) {
          auto* from = reinterpret_cast<const decltype(element)*>(x) + row.x + first * stretches.in_channels;
          for (int64_t c = 0; c < columns; ++c, from += stretches.in_channels)
            store(to + c * L, load_first(from, count));
        });
      }) - first * L;
  }

  void list_passes(int64_t stretch, List<NarrowPass>& passes) const {
    passes.size = 0;
    int64_t tiles = ceil_div(p.window[2], NARROW_TAPS), first = stretches.first_column(stretch);
    for (int64_t i = 0; i < tiles; ++i) {
      NarrowPass pass{};
      pass.tap = p.window[2] * i / tiles, pass.taps = p.window[2] * (i + 1) / tiles - pass.tap;
      pass.first = first, pass.last = first + stretches.columns_in(stretch);
      pass.from = pass.first, pass.to = pass.last;
      for (int64_t w = pass.tap; w < pass.tap + pass.taps; ++w) {
        int64_t from, to;
        stretches.columns_of(stretch, w, from, to);
        pass.from = maximum(pass.from, from), pass.to = minimum(pass.to, to);
      }
      if (pass.to <= pass.from) pass.from = pass.to = pass.last;
      pass.y_column = p.filters * L, pass.source = pass.tap * p.dilation[2] - p.low[2];
      pass.source_column = p.strides[2], pass.source_tap = p.dilation[2], pass.sources = p.in[2];
      if (pass.first < pass.last) passes.push(pass);
    }
  }

  template <class T>
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
  void choose_taps(int64_t w, const A* x, const A* y, const NarrowPass& pass, A* sums) const {
    for (int64_t v = 0, count; v < p.filters; v += count) {
      int64_t left = p.filters - v;
      count = left >= plan.vectors ? plan.vectors : left >= 2 ? 2 : 1;
      auto with = [&](auto W, auto V) {
        sum_taps<A, W, V>(x, y + v * L, pass, sums + v * taps * L, L, taps * L);
      };
      if (count == 4)
        with_number<3>(w, [&](auto W) { with(W, Number<4>{}); });
      else if (count == 2)
        with_number<NARROW_TAPS>(w, [&](auto W) { with(W, Number<2>{}); });
      else
        with_number<NARROW_TAPS>(w, [&](auto W) { with(W, Number<1>{}); });
    }
  }

  // The sum of the partial sums of a block's groups, in the kernel's layout.
  template <class T>
  void add(int64_t block, const A* partial, T* result) const {
    for (int64_t v = 0; v < lanes.vectors; ++v) {
      int64_t offset[L], used = lanes.offsets(block, v, p.filters, stretches.out_channels, offset);
      for (int64_t f = 0; f < p.filters; ++f)
        for (int64_t tap = 0; tap < taps; ++tap) {
          const A* from = partial + (((block * lanes.vectors + v) * p.filters + f) * taps + tap) * L;
          Vector<A> sum = load(from);
          for (int64_t i = 1; i < plan.partitions; ++i) sum += load(from + i * plan.packed);
          T* to = result + tap * p.channels * stretches.out_channels + f;
          for (int64_t l = 0; l < used; ++l) to[offset[l]] = rounded<T>(sum[l]);
        }
    }
  }
};

}  // namespace
}  // namespace gconv
