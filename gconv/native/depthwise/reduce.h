// Role w of depthwise convolution (see nest.h), in one of two orders:
//
//   tiles   the registers hold Q pixels of y, or Q in each of two rows, and each run of taps adds to its K
//   sums, which it loads and
//           stores
//   rows    the registers hold the K sums of V strands from one end of a row to the other, Q pixels at a
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

template <class S>
class ReduceDepthwise {
  using T = typename S::Element;
  using A = Wide<T>;
  using Numbers = typename S::Numbers;
  static constexpr int L = S::LANES;
  static constexpr int LARGEST = S::VECTORS == 2 ? HALF_TILE : TILE;  // pixels of a tile
  static constexpr int WIDE = whole_row_vectors(REGISTERS) / S::VECTORS;
  const Plan& plan;
  const Problem& p;
  Gather g;
  int64_t channels, strands;  // partial sums: [tap][strand][number]

 public:
  ReduceDepthwise(const Plan& plan, const Problem& p)
      : plan(plan), p(p), g(Role::y, p, plan.dilated_phases), channels(p.groups),
        strands(ceil_div(channels, L)) {}

  void run(const void* sources, const void* outputs, void* results, const Scratch& scratch,
           const Parallel& parallel) const {
    const T *x = static_cast<const T*>(sources), *y = static_cast<const T*>(outputs);
    A* partial = static_cast<A*>(scratch.rest);
    int64_t partitions = plan.partitions, rows = Rows::units(plan, g), in_row = Rows::in_row(plan, g);
    int64_t parts = maximum(1, minimum(strands / 4, 4 * parallel.threads / partitions));
    for_each(parallel, partitions * parts, 1 << 14, [&](int64_t unit) {
      int64_t partition = unit / parts, part = unit % parts;
      int64_t from = strands * part / parts, to = strands * (part + 1) / parts;
      A* own = partial + partition * plan.packed;
      for (int64_t tap = 0; tap < g.taps; ++tap)
        memset(own + (tap * strands + from) * L, 0, (to - from) * L * sizeof(A));
      Rows of(plan, p, g, LARGEST, longest_run<S>(g.axis[2], channels));
      int64_t first = plan.stretches * partition / partitions,
              last = plan.stretches * (partition + 1) / partitions;
      for (int64_t stretch = first; stretch < last; ++stretch) {
        auto one = [&](const Tile& t) -> int64_t {
          if (!t.count) return t.left;  // a row on the padding
          if (channels < L)
            return t.left >= HALF_TILE ? tile_of_part<HALF_TILE>(t, x, y, own)
                                       : tile_of_part<1>(t, x, y, own);
          if (plan.whole_rows) return row(t, from, to, x, y, own);
          if (t.left >= LARGEST) return tile<LARGEST>(t, from, to, x, y, own);
          if (t.left >= HALF_TILE) return tile<HALF_TILE>(t, from, to, x, y, own);
          return t.left >= 3 ? tile<3>(t, from, to, x, y, own) : tile<1>(t, from, to, x, y, own);
        };
        auto two = [&](const Tile& t) -> int64_t {
          if (!t.count) return t.left;
          if (t.left >= HALF_TILE) return tile<HALF_TILE, true>(t, from, to, x, y, own);
          if (t.left >= 5) return tile<5, true>(t, from, to, x, y, own);
          return t.left >= 3 ? tile<3, true>(t, from, to, x, y, own) : tile<1, true>(t, from, to, x, y, own);
        };
        of.unit(stretch / rows / in_row, stretch % rows, stretch / rows % in_row, one, two);
      }
    });
    for_each(parallel, g.taps, strands * partitions, [&](int64_t tap) {
      if (p.widens)
        add(tap, partial, static_cast<A*>(results) + tap * channels);
      else
        add(tap, partial, static_cast<T*>(results) + tap * channels);
    });
  }

 private:
  // The sum of a tap's partial sums.
  template <class R>
  void add(int64_t tap, const A* partial, R* to) const {
    const S strand;
    for (int64_t v = 0; v < strands; ++v) {
      const A* at = partial + (tap * strands + v) * L;
      Numbers sum = S::load_sums(at);
      for (int64_t i = 1; i < plan.partitions; ++i) S::add(sum, S::load_sums(at + i * plan.packed));
      channels < L ? strand.store_first(to, sum, channels)
                   : strand.store(to + together<S, 1>(v, channels).first, sum);
    }
  }

  template <int Q, bool TWO = false>
  int64_t tile(const Tile& t, int64_t from, int64_t to, const T* x, const T* y, A* partial) const {
    for (int64_t v = from; v < to; ++v) {
      if (plan.past_caches) {
        int64_t step = g.axis[2].step * channels;
        fetch_sources<false, S>(t, x + v * L, g.axis[2], channels, Q, v);
        for (int row = 0; row <= TWO; ++row)
          fetch<false, S>(y + t.result + row * t.next + Q * step + v * L, step, Q, v);
      }
      int64_t first = together<S, 1>(v, channels).first;
      const T *source = x + t.source + first, *ours = y + t.result + first;
      if constexpr (!TWO)
        with_stride(g.axis[2], [&](auto stride) { sum<Q, stride>(t, source, ours, partial + v * L); });
      else if constexpr (REGISTERS == 32 && S::VECTORS == 1)
        sum_two<Q>(t, source, ours, partial + v * L);
    }
    return Q;
  }

  template <int Q>
  __attribute__((noinline)) void sum_two(const Tile& t, const T* x, const T* y, A* partial) const {
    const S strand;
    int64_t row = strands * L;
    Numbers first[Q], second[Q];
    UNROLL for (int q = 0; q < Q; ++q)
      first[q] = strand.load(y + q * channels), second[q] = strand.load(y + t.next + q * channels);
    for (const Run* r = t.runs; r < t.runs + t.count; ++r) {
      uint64_t valid = r->valid;
      A* to1 = partial + maximum(r->weights, 0) / channels * row;
      A* to2 = partial + maximum(r->second, 0) / channels * row;
      with_number<TWO_ROWS_RUN>(
          r->taps, [&](auto taps) __attribute__((always_inline)) {
            constexpr int K = taps;
            Numbers sum1[K], sum2[K];
            auto begin = [&](Numbers(&sum)[K], const A* from) __attribute__((always_inline)) {
              UNROLL for (int k = 0; k < K; ++k) sum[k] = S::load_sums(from + k * row);
            };
            auto end = [&](const Numbers(&sum)[K], A* to) __attribute__((always_inline)) {
              UNROLL for (int k = 0; k < K; ++k) S::store_sums(to + k * row, sum[k]);
            };
            auto pass = [&](const auto& meet) __attribute__((always_inline)) {
              slide<Q, K, 1, true, false>(strand, x + r->source, channels, valid, 0, meet);
            };
            if (r->second == NONE) {
              begin(sum1, to1);
              pass([&](Numbers source, int, int k, int q)
                       __attribute__((always_inline)) { S::add_product(sum1[k], source, first[q]); });
              end(sum1, to1);
            } else if (r->weights == NONE) {
              begin(sum2, to2);
              pass([&](Numbers source, int, int k, int q)
                       __attribute__((always_inline)) { S::add_product(sum2[k], source, second[q]); });
              end(sum2, to2);
            } else {
              begin(sum1, to1), begin(sum2, to2);
              pass([&](Numbers source, int, int k, int q) __attribute__((always_inline)) {
                S::add_product(sum1[k], source, first[q]), S::add_product(sum2[k], source, second[q]);
              });
              end(sum1, to1), end(sum2, to2);
            }
          });
    }
  }

  template <int Q, int STRIDE>
  __attribute__((noinline)) void sum(const Tile& t, const T* x, const T* y, A* partial) const {
    const S strand;
    const Axis& width = g.axis[2];
    int64_t between = distance(width), row = strands * L, step = width.step * channels;
    Numbers ours[Q];
    UNROLL for (int q = 0; q < Q; ++q) ours[q] = strand.load(y + q * step);
    for (const Run* r = t.runs; r < t.runs + t.count; ++r) {
      uint64_t valid = r->valid;
      A* sums = partial + r->weights / channels * row;
      with_taps<longest_run<S>(STRIDE)>(
          r->taps, [&](auto taps) __attribute__((always_inline)) {
            constexpr int K = taps;
            Numbers sum[K];
            UNROLL for (int k = 0; k < K; ++k) sum[k] = S::load_sums(sums + k * row);
            slide<Q, K, STRIDE, true, false>(
                strand, x + r->source, between * channels, valid,
                0, [&](Numbers source, int, int k, int q) __attribute__((always_inline)) {
                  S::add_product(sum[k], source, ours[q]);
                });
            UNROLL for (int k = 0; k < K; ++k) S::store_sums(sums + k * row, sum[k]);
          });
    }
  }

  // Of fewer channels than a strand has lanes, one tap at a time.
  template <int Q>
  __attribute__((noinline)) int64_t tile_of_part(const Tile& t, const T* x, const T* y, A* partial) const {
    const S strand;
    const Axis& width = g.axis[2];
    Numbers ours[Q];
    UNROLL for (int q = 0; q < Q; ++q)
      ours[q] = strand.load_first(y + t.result + q * width.step * channels, channels);
    for (const Run* r = t.runs; r < t.runs + t.count; ++r) {
      uint64_t valid = r->valid;
      A* to = partial + r->weights / channels * L;
      Numbers sum = S::load_sums(to);
      slide<Q, 1, 1, true, true>(
          strand, x + t.source + r->source, width.stride * channels, valid,
          channels, [&](Numbers source, int, int, int q) __attribute__((always_inline)) {
            S::add_product(sum, source, ours[q]);
          });
      S::store_sums(to, sum);
    }
    return Q;
  }

  // A row to its end, for up to WIDE vectors and then the next.
  int64_t row(const Tile& t, int64_t from, int64_t to, const T* x, const T* y, A* partial) const {
    for (int64_t v = from, count; v < to; v += count) {
      int64_t left = to - v;
      count = WIDE > 2 && left == WIDE + 1 ? WIDE - 1 : minimum(left, WIDE);  // 3 and 2 rather than 4 and 1
      with_number<WIDE>(count, [&](auto strands) {
        constexpr int V = strands;
        if constexpr (V > 1 || WIDE <= 2) {  // of 2 strands or more there is never one left
          Together at = together<S, V>(v, channels);
          with_stride(g.axis[2], [&](auto stride) {
            sum_row<V, stride>(t, at.last, x + t.source + at.first, y + t.result + at.first, partial + v * L);
          });
        }
      });
    }
    return t.left;
  }

  template <int V, int STRIDE>
  __attribute__((noinline)) void sum_row(const Tile& t, int64_t last, const T* x, const T* y,
                                         A* partial) const {
    const S strand;
    const Axis& width = g.axis[2];
    int64_t between = distance(width), row = strands * L, step = width.step * channels;
    for (const Run* r = t.runs; r < t.runs + t.count; ++r) {
      A* sums = partial + r->weights / channels * row;
      int64_t column = r->column + t.column;  // of the first pixel's first source
      int64_t inside = -floor_div(column, width.stride);
      int64_t outside = floor_div(width.sources - 1 - (r->taps - 1) * between - column, width.stride) + 1;
      auto pass = [&](auto taps) __attribute__((always_inline)) {
        constexpr int K = taps, Q = K < WHOLE_ROW_RUN ? 4 : 2;
        Numbers sum[K][V];
        UNROLL for (int k = 0; k < K; ++k) UNROLL
        for (int v = 0; v < V; ++v) sum[k][v] = S::load_sums(sums + k * row + v * L);
        auto pixels = [&](auto count, auto edge, int64_t q) __attribute__((always_inline)) {
          constexpr int N = count;
          constexpr bool EDGE = edge;
          Numbers ours[N][V];
          UNROLL for (int i = 0; i < N; ++i) UNROLL
          for (int v = 0; v < V; ++v)
            ours[i][v] = strand.load(y + (q + i) * step + (V > 1 && v == V - 1 ? last : v * L));
          slide<N, K, STRIDE, EDGE, false, V>(
              strand, x + r->source + q * width.stride * channels, between * channels,
              EDGE ? valid_sources(column + q * width.stride, between, width.sources) : ALL_VALID,
              last, [&](Numbers source, int v, int k, int i) __attribute__((always_inline)) {
                S::add_product(sum[k][v], source, ours[i][v]);
              });
        };
        bool alone = t.left % Q != 0;
        for (int64_t q = 0; q < t.left;) {
          bool edge = q < inside || q + Q > outside;
          if (q + Q > t.left || (alone && edge))
            pixels(Number<1>{}, Number<true>{}, q), q += 1;
          else if (edge)
            pixels(Number<Q>{}, Number<true>{}, q), q += Q;
          else
            pixels(Number<Q>{}, Number<false>{}, q), q += Q;
        }
        UNROLL for (int k = 0; k < K; ++k) UNROLL
        for (int v = 0; v < V; ++v) S::store_sums(sums + k * row + v * L, sum[k][v]);
      };
      r->taps == 3 ? pass(Number<3>{}) : pass(Number<4>{});
    }
  }
};

}  // namespace
}  // namespace gconv
