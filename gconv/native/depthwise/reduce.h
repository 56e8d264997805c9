// Role w of depthwise convolution (see nest.h), in one of two orders:
//
//   tiles   the registers hold Q pixels of y, or Q in each of two rows, and each run of taps adds to its K
//   sums, which it loads and
//           stores
//   rows    the registers hold the K sums of V vectors from one end of a row to the other, Q pixels at a
//   time, for each run of taps
//           after the others: (Q - 1) * s + K + Q loads for K * Q multiply-adds, 10 for 12 with K = 3 and Q =
//           4
//
// Rows read memory in its own order, several lines of each pixel side by side, which the processor foresees.
// They take 0.4 to 1 of the tiles' time (measured), but need few taps in a run and enough vectors for enough
// sums. Two rows at a time are as fast; so are tiles that just fit a row where there are 16 registers, and,
// asking for what is ahead, where x and y are large and a row takes several passes: with a stride, of few
// lines each.
//
// The rows of y are cut into partitions, each with partial sums of its own that are added up in their order
// at the end. Their number is fixed by the shapes alone, so the result does not depend on how many threads
// there are.

#pragma once

#include "depthwise/nest.h"
#include "reduce/reduce.h"

namespace gconv {
namespace {

template <class T>
class ReduceDepthwise {
  using A = Wide<T>;
  static constexpr int L = LANES<A>;
  static constexpr int WIDE = whole_row_vectors(REGISTERS);
  const Plan& plan;
  const Problem& p;
  Gather g;
  int64_t channels, vectors;  // partial sums: [tap][channel, in whole vectors]

 public:
  ReduceDepthwise(const Plan& plan, const Problem& p)
      : plan(plan), p(p), g(Role::y, p, plan.dilated_phases), channels(p.groups),
        vectors(ceil_div(channels, L)) {}

  void run(const T* x, const T* y, T* result, void* scratch, const Parallel& parallel) const {
    A* partial = static_cast<A*>(scratch);
    int64_t partitions = plan.partitions, rows = Rows::units(plan, g), in_row = Rows::in_row(plan, g);
    int64_t parts = maximum(1, minimum(vectors / 4, 4 * parallel.threads / partitions));
    for_each(parallel, partitions * parts, 1 << 14, [&](int64_t unit) {
      int64_t partition = unit / parts, part = unit % parts;
      int64_t from = vectors * part / parts, to = vectors * (part + 1) / parts;
      A* own = partial + partition * plan.packed;
      for (int64_t tap = 0; tap < g.taps; ++tap)
        memset(own + (tap * vectors + from) * L, 0, (to - from) * L * sizeof(A));
      Rows of(plan, p, g, TILE);
      int64_t first = plan.stretches * partition / partitions,
              last = plan.stretches * (partition + 1) / partitions;
      for (int64_t stretch = first; stretch < last; ++stretch) {
        auto one = [&](const Tile& t) {
          return plan.whole_rows       ? row(t, from, to, x, y, own)
                 : t.left >= TILE      ? tile<TILE>(t, from, to, x, y, own)
                 : t.left >= HALF_TILE ? tile<HALF_TILE>(t, from, to, x, y, own)
                 : t.left >= 3         ? tile<3>(t, from, to, x, y, own)
                 : t.left >= 2         ? tile<2>(t, from, to, x, y, own)
                                       : tile<1>(t, from, to, x, y, own);
        };
        auto two = [&](const Tile& t) {
          return t.left >= HALF_TILE ? tile<HALF_TILE, true>(t, from, to, x, y, own)
                 : t.left >= 5       ? tile<5, true>(t, from, to, x, y, own)
                 : t.left >= 3       ? tile<3, true>(t, from, to, x, y, own)
                 : t.left >= 2       ? tile<2, true>(t, from, to, x, y, own)
                                     : tile<1, true>(t, from, to, x, y, own);
        };
        of.unit(stretch / rows / in_row, stretch % rows, stretch / rows % in_row, one, two);
      }
    });
    for_each(parallel, g.taps, vectors * partitions, [&](int64_t tap) {
      for (int64_t v = 0; v < vectors; ++v) {
        const A* at = partial + (tap * vectors + v) * L;
        Vector<T> sum = load(at);
        for (int64_t i = 1; i < partitions; ++i) sum += load(at + i * plan.packed);
        store_first(result + tap * channels + v * L, sum, channels - v * L);
      }
    });
  }

 private:
  template <int Q, bool TWO = false>
  int64_t tile(const Tile& t, int64_t from, int64_t to, const T* x, const T* y, A* partial) const {
    if (!t.count) return t.left;  // a row on the padding
    for (int64_t v = from; v < to; ++v) {
      int64_t step = g.axis[2].step * channels;
      if (plan.past_caches) {
        fetch_sources<false>(t, x + v * L, g.axis[2], channels, Q, v);
        for (int row = 0; row <= TWO; ++row)
          fetch<false>(y + t.result + row * t.next + Q * step + v * L, step, Q, v);
      }
      with_stride(g.axis[2], t.edge, (v + 1) * L > channels, [&](auto stride, auto edge, auto part) {
        if constexpr (!TWO)
          sum<Q, stride, edge, part>(t, channels - v * L, x + t.source + v * L, y + t.result + v * L,
                                     partial + v * L);
        else if constexpr (stride == 1 && REGISTERS == 32)
          sum_two<Q, edge, part>(t, channels - v * L, x + t.source + v * L, y + t.result + v * L,
                                 partial + v * L);
      });
    }
    return Q;
  }

  template <int Q, bool EDGE, bool PART>
  __attribute__((noinline)) void sum_two(const Tile& t, int64_t lanes, const T* x, const T* y,
                                         A* partial) const {
    int64_t row = vectors * L;
    Vector<T> first[Q], second[Q];
    UNROLL for (int q = 0; q < Q; ++q) {
      const T *one = y + q * channels, *two = one + t.next;
      first[q] = PART ? load_first(one, lanes) : load(one),
      second[q] = PART ? load_first(two, lanes) : load(two);
    }
    for (const Run* r = t.runs; r < t.runs + t.count; ++r) {
      uint64_t valid = EDGE ? valid_sources(r->column + t.column, 1, g.axis[2].sources) : 0;
      A *sums1 = partial + maximum(r->weights, 0) / channels * row,
        *sums2 = partial + maximum(r->second, 0) / channels * row;
      Vector<T> sum1[TWO_ROWS_RUN], sum2[TWO_ROWS_RUN];
#define SLIDE(K, SUMS)                \
  slide<T, Q, K, 1, EDGE, PART>(      \
      x + r->source, channels, valid, \
      lanes, [&](Vector<T> source, int, int k, int q) __attribute__((always_inline)) { SUMS; })
#define LOAD(K, I) \
  UNROLL           \
  for (int k = 0; k < K; ++k) sum##I[k] = load(sums##I + k * row)
#define STORE(K, I) \
  UNROLL            \
  for (int k = 0; k < K; ++k) store(sums##I + k * row, sum##I[k])
#define CASE(K)                                                                \
  case K:                                                                      \
    if (r->second == NONE) {                                                   \
      LOAD(K, 1);                                                              \
      SLIDE(K, sum1[k] += source * first[q]);                                  \
      STORE(K, 1);                                                             \
    } else if (r->weights == NONE) {                                           \
      LOAD(K, 2);                                                              \
      SLIDE(K, sum2[k] += source * second[q]);                                 \
      STORE(K, 2);                                                             \
    } else {                                                                   \
      LOAD(K, 1);                                                              \
      LOAD(K, 2);                                                              \
      SLIDE(K, (sum1[k] += source * first[q], sum2[k] += source * second[q])); \
      STORE(K, 1);                                                             \
      STORE(K, 2);                                                             \
    }                                                                          \
    break;
      switch (r->taps) { CASE(1) CASE(2) CASE(3) }
#undef CASE
#undef STORE
#undef LOAD
#undef SLIDE
    }
  }

  template <int Q, int STRIDE, bool EDGE, bool PART>
  __attribute__((noinline)) void sum(const Tile& t, int64_t lanes, const T* x, const T* y, A* partial) const {
    const Axis& width = g.axis[2];
    int64_t between = apart<STRIDE>(width), row = vectors * L, step = width.step * channels;
    Vector<T> ours[Q];
    UNROLL for (int q = 0; q < Q; ++q) ours[q] = PART ? load_first(y + q * step, lanes) : load(y + q * step);
    for (const Run* r = t.runs; r < t.runs + t.count; ++r) {
      uint64_t valid = EDGE ? valid_sources(r->column + t.column, between, width.sources) : 0;
      A* sums = partial + r->weights / channels * row;
#define CASE(K)                                                                          \
  case K: {                                                                              \
    Vector<T> sum[K];                                                                    \
    UNROLL                                                                               \
    for (int k = 0; k < K; ++k) sum[k] = load(sums + k * row);                           \
    slide<T, Q, K, STRIDE, EDGE, PART>(                                                  \
        x + r->source, between * channels, valid,                                        \
        lanes, [&](Vector<T> source, int, int k, int q) __attribute__((always_inline)) { \
          sum[k] += source * ours[q];                                                    \
        });                                                                              \
    UNROLL                                                                               \
    for (int k = 0; k < K; ++k) store(sums + k * row, sum[k]);                           \
    break;                                                                               \
  }
      switch (r->taps) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) }
#undef CASE
    }
  }

  // A row to its end, for up to WIDE vectors and then the next.
  int64_t row(const Tile& t, int64_t from, int64_t to, const T* x, const T* y, A* partial) const {
    for (int64_t v = from, count; v < to; v += count) {
      int64_t left = to - v;
      count = WIDE > 2 && left == WIDE + 1 ? WIDE - 1 : minimum(left, WIDE);  // 3 and 2 rather than 4 and 1
      auto with = [&](auto count) {
        with_stride(g.axis[2], false, (v + count) * L > channels, [&](auto stride, auto, auto part) {
          sum_row<count, stride, part>(t, channels - v * L, x + t.source + v * L, y + t.result + v * L,
                                       partial + v * L);
        });
      };
      if (count == 2) with(Number<2>{});
      if constexpr (WIDE == 2) {
        if (count == 1) with(Number<1>{});
      } else {  // of 2 vectors or more
        if (count == 3) with(Number<3>{});
        if (count == 4) with(Number<4>{});
      }
    }
    return t.left;
  }

  template <int V, int STRIDE, bool PART>
  __attribute__((noinline)) void sum_row(const Tile& t, int64_t lanes, const T* x, const T* y,
                                         A* partial) const {
    const Axis& width = g.axis[2];
    int64_t between = apart<STRIDE>(width), row = vectors * L, step = width.step * channels;
    for (const Run* r = t.runs; r < t.runs + t.count; ++r) {
      A* sums = partial + r->weights / channels * row;
      int64_t column = r->column + t.column;  // of the first pixel's first source
      int64_t inside = -floor_div(column, width.stride);
      int64_t outside = floor_div(width.sources - 1 - (r->taps - 1) * between - column, width.stride) + 1;
#define CASE(K)                                                                              \
  case K: {                                                                                  \
    constexpr int Q = K < WHOLE_ROW_RUN ? 4 : 2;                                             \
    Vector<T> sum[K][V];                                                                     \
    UNROLL                                                                                   \
    for (int k = 0; k < K; ++k) UNROLL                                                       \
    for (int v = 0; v < V; ++v) sum[k][v] = load(sums + k * row + v * L);                    \
    auto pixels = [&](auto count, auto edge, int64_t q) __attribute__((always_inline)) {     \
      constexpr int N = count;                                                               \
      Vector<T> ours[N][V];                                                                  \
      UNROLL                                                                                 \
      for (int i = 0; i < N; ++i) UNROLL                                                     \
      for (int v = 0; v < V; ++v) {                                                          \
        const T* at = y + (q + i) * step + v * L;                                            \
        ours[i][v] = PART && v == V - 1 ? load_first(at, lanes - v * L) : load(at);          \
      }                                                                                      \
      slide<T, N, K, STRIDE, edge, PART, V>(                                                 \
          x + r->source + q * width.stride * channels, between * channels,                   \
          edge ? valid_sources(column + q * width.stride, between, width.sources) : 0,       \
          lanes, [&](Vector<T> source, int v, int k, int i) __attribute__((always_inline)) { \
            sum[k][v] += source * ours[i][v];                                                \
          });                                                                                \
    };                                                                                       \
    bool alone = t.left % Q != 0;                                                            \
    for (int64_t q = 0; q < t.left;)                                                         \
      if (q + Q > t.left || (alone && (q < inside || q + Q > outside)))                      \
        pixels(Number<1>{}, True{}, q), q += 1;                                              \
      else if (q < inside || q + Q > outside)                                                \
        pixels(Number<Q>{}, True{}, q), q += Q;                                              \
      else                                                                                   \
        pixels(Number<Q>{}, False{}, q), q += Q;                                             \
    UNROLL                                                                                   \
    for (int k = 0; k < K; ++k) UNROLL                                                       \
    for (int v = 0; v < V; ++v) store(sums + k * row + v * L, sum[k][v]);                    \
    break;                                                                                   \
  }
      switch (r->taps) { CASE(1) CASE(2) CASE(3) CASE(4) }
#undef CASE
    }
  }
};

}  // namespace
}  // namespace gconv
