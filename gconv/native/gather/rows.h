// Roles y and x where neighbouring results meet neighbouring sources, so that no table has to say where:
// lanes are result channels of one group, and each source value is broadcast, as in wide.h.
//
// The register tile is Q results of one row by V vectors of filters:
//
//   for each tap of a row, for each source channel:  V loads of weights;  for each of Q results: 1 broadcast
//   load of x, V multiply-adds
//
// V + Q loads for V * Q multiply-adds, and the Q results are all as far apart, so a few addresses reach them
// and a tile has more of them than with a table: with 32 registers 14 of up to two vectors, 16 loads for 28
// multiply-adds.
//
// Two kinds of problems are such:
//
//   one group of few sources, as an image's colours: the taps of a row are one tap, whose sources are
//   neighbours in x. Those of a tile over a border are copied, with zeros where it is on the padding. a
//   single tap that meets every pixel: a matrix product. All pixels are one row.

#pragma once

#include "gather/gather.h"

namespace gconv {
namespace {

// For Q results whose sources lie one `step` after the other, the taps of a row or the single tap: `length`
// sources.
template <class T, int Q, int V>
ALWAYS_INLINE void multiply_row(Vector<T> (&sums)[Q][V], const T* x, int64_t step, const Wide<T>* w,
                                int64_t length) {
  const T* from[(Q + 2) / 3];  // every third has a register, as in narrow.h
  from[0] = x;
  UNROLL for (int i = 1; i < (Q + 2) / 3; ++i) from[i] = from[i - 1] + 3 * step;
  for (int64_t s = 0; s < length; ++s, w += V * LANES<Wide<T>>) {
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
class GatherRows {
  using A = Wide<T>;
  static constexpr int L = LANES<A>;
  static constexpr bool MANY = REGISTERS == 32;
  static constexpr int64_t WORK = 1 << 15;  // multiply-adds of vectors in a unit
  const Plan& plan;
  const Problem& p;
  Gather g;
  int64_t step;     // from one result's sources to the next one's
  int64_t columns;  // of sources in a row
  int64_t span;     // columns that the taps of a row meet

  struct RowOfTaps {  // the source at column 0, and the row of the packed kernel
    int64_t source, weights;
  };
  struct Lists {
    List<RowOfTaps> rows;
    List<T> copies;  // of a tile over a border: the sources of each of the rows
  };

 public:
  GatherRows(const Plan& plan, Role role, const Problem& p)
      : plan(plan), p(p), g(role, p), step(g.axis[2].stride * g.source_channels()),
        columns(g.axis[2].sources), span(p.window[2]) {
    if (plan.kernel == Kernel::matrix) columns = g.batch * p.in[0] * p.in[1] * p.in[2];
  }

  void run(const T* x, const T* w, T* result, void* scratch, const Parallel& parallel) const {
    A* packed = static_cast<A*>(scratch);
    bool backwards = g.axis[2].phases.size && span > 1 &&
                     g.axis[2].phases[0].taps[0].source > g.axis[2].phases[0].taps[1].source;
    g.pack(parallel, w, packed, backwards ? span : 1);
    if (plan.kernel == Kernel::matrix)
      return g.for_stretches(
          parallel, ceil_div(columns, plan.stretch), [&](int64_t unit, int64_t from, int64_t to) {
            Lists lists;
            int64_t first = unit * plan.stretch, count = minimum(plan.stretch, columns - first);
            for (int64_t group = from; group < to; ++group)
              blocks<true>(group, count, first, x, packed, result + first * g.result_channels(), lists);
          });
    const Axis& width = g.axis[2];
    int64_t rows = g.batch * g.axis[0].results * g.axis[1].results;
    int64_t in_row = ceil_div(width.results, plan.stretch), stretches = rows * in_row;
    int64_t work = minimum(width.results, plan.stretch) * g.taps * g.sources * ceil_div(g.results, L);
    int64_t per_unit =
        maximum(1, minimum(WORK / maximum(work, 1), ceil_div(stretches, 16 * parallel.threads)));
    for_each(parallel, ceil_div(stretches, per_unit), per_unit * work, [&](int64_t unit) {
      Lists lists;
      for (int64_t i = unit * per_unit; i < minimum(stretches, (unit + 1) * per_unit); ++i) {
        int64_t row = i / in_row, first = i % in_row * plan.stretch;
        find(row, lists.rows);
        const Phase& taps = width.phases[0];
        int64_t column = minimum(taps.taps[0].source, taps.taps[taps.size - 1].source) + first * width.stride;
        T* to = result + (row * width.results + first) * g.result_channels();
        blocks<false>(0, minimum(plan.stretch, width.results - first), column, x, packed, to, lists);
      }
      fence();
    });
  }

 private:
  // The rows of taps that meet a source from a row of results.
  void find(int64_t index, List<RowOfTaps>& rows) const {
    const Axis &depth = g.axis[0], &height = g.axis[1];
    int64_t h = index % height.results, d = index / height.results % depth.results,
            n = index / height.results / depth.results;
    const Phase &dp = depth.phases[d % depth.step], &hp = height.phases[h % height.step];
    rows.size = 0;
    for (int64_t a = 0; a < dp.size; ++a) {
      int64_t sd = dp.taps[a].source + d / depth.step * depth.stride;
      if (sd < 0 || sd >= depth.sources) continue;
      for (int64_t b = 0; b < hp.size; ++b) {
        int64_t sh = hp.taps[b].source + h / height.step * height.stride;
        if (sh < 0 || sh >= height.sources) continue;
        int64_t row = (n * depth.sources + sd) * height.sources + sh;
        rows.push({row * columns * g.source_channels(),
                   g.tap(dp.taps[a].index, hp.taps[b].index, 0, p) * g.sources});
      }
    }
  }

  // `count` results of a row, the first of which finds its first source in `column`.
  template <bool MATRIX>
  void blocks(int64_t group, int64_t count, int64_t column, const T* x, const A* packed, T* result,
              Lists& lists) const {
    int64_t vectors = ceil_div(g.results, L);
    for (int64_t v = 0, block; v < vectors; v += block) {
      block = block_of(vectors - v, 3);
      const A* w = packed + (group * vectors + v) * g.taps * g.sources * L;
      int64_t filters = minimum(block * L, g.results - v * L);
      const T* source = x + group * g.sources;
      T* to = result + group * g.results + v * L;
      if (block == 1)
        tiles_of<MATRIX, row_tile(REGISTERS, 1), 1>(count, column, source, w, filters, to, lists);
      else if (block == 2)
        tiles_of<MATRIX, row_tile(REGISTERS, 2), 2>(count, column, source, w, filters, to, lists);
      else
        tiles_of<MATRIX, row_tile(REGISTERS, 3), 3>(count, column, source, w, filters, to, lists);
    }
  }

  // Rows that images have in practice are multiples of 7 or of 8.
  template <bool MATRIX, int Q, int V, class... Rest>
  void tiles_of(int64_t count, Rest&&... rest) const {
    if constexpr (MANY && !MATRIX)
      if (count % 8 == 0 && count % 7) return tiles<MATRIX, 8, V>(count, rest...);
    tiles<MATRIX, Q, V>(count, rest...);
  }

  // A rest of up to half a tile goes to smaller ones, a longer one to a tile that ends with it and sums some
  // results to the same again.
  template <bool MATRIX, int Q, int V>
  void tiles(int64_t count, int64_t column, const T* x, const A* w, int64_t filters, T* result,
             Lists& lists) const {
    bool streams = plan.past_caches && whole_lines<T, V>(result, g.results);
    int64_t stride = g.axis[2].stride, wide = (Q - 1) * stride + span;
    for (int64_t q = 0; q < count; q += Q) {
      if constexpr (Q > 1)
        if (int64_t rest = count - q; q == 0 ? rest < Q : rest <= Q / 2)
          return tiles<MATRIX, Q / 2, V>(rest, column + q * stride, x, w, filters,
                                         result + q * g.result_channels(), lists);
      q = minimum(q, count - Q);
      int64_t first = column + q * stride;
      Vector<T> sums[Q][V] = {};
      if constexpr (MATRIX) {
        multiply_row<T, Q, V>(sums, x + first * step, step, w, g.sources);
      } else {
        bool inside = first >= 0 && first + wide <= columns;
        if (!inside) copy(x, first, wide, lists);
        for (int64_t i = 0; i < lists.rows.size; ++i) {
          const T* from = inside ? x + lists.rows[i].source + first * g.sources
                                 : lists.copies.data + i * wide * g.sources;
          multiply_row<T, Q, V>(sums, from, step, w + lists.rows[i].weights * V * L, span * g.sources);
        }
      }
      T* to = result + q * g.result_channels();
      UNROLL for (int i = 0; i < Q; ++i, to += g.result_channels()) UNROLL
      for (int v = 0; v < V; ++v)
        if (filters >= (v + 1) * L)
          streams ? stream(to + v * L, sums[i][v]) : store(to + v * L, sums[i][v]);
        else
          store_first(to + v * L, sums[i][v], filters - v * L);
    }
  }

  // The sources of so many columns of each row, and zeros beyond the ends.
  void copy(const T* x, int64_t first, int64_t wide, Lists& lists) const {
    lists.copies.reserve(lists.rows.size * wide * g.sources);
    int64_t from = minimum(maximum(first, 0), first + wide),
            to = maximum(from, minimum(first + wide, columns));
    T* end = lists.copies.data;
    auto zeros = [&](int64_t count) {
      memset(end, 0, count * g.sources * sizeof(T)), end += count * g.sources;
    };
    for (int64_t i = 0; i < lists.rows.size; ++i) {
      zeros(from - first);
      memcpy(end, x + lists.rows[i].source + from * g.sources, (to - from) * g.sources * sizeof(T)),
          end += (to - from) * g.sources;
      zeros(first + wide - to);
    }
  }
};

}  // namespace
}  // namespace gconv
