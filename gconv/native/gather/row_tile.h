// The register tile of roles y and x where neighbouring results meet neighbouring sources, so that no table
// has to say where: in rows.h and matrix.h. Lanes are result channels of one group, and each source value is
// broadcast, as in wide.h. The tile is Q results of one row by V vectors of filters:
//
//   for each tap of a row, for each source channel:
//     V loads of weights;  for each of Q results: 1 broadcast load of x, V multiply-adds
//
// These are V + Q loads for V * Q multiply-adds. The Q results are all as far apart, so a few addresses reach
// them and a tile has more of them than with a table: with 32 registers 14 of up to two vectors, 16 loads for
// 28 multiply-adds.
//
// Sources are read where they are: numbers, or pairs of channels (vectors/products.h). Else, of half
// precision, those of a stretch are read as numbers first, and its results are written from numbers.

#pragma once

#include "gather/finish.h"

namespace gconv {
namespace {

// Weights that are read next: a tile asks for its share of them while it multiplies. They come from memory or
// the last cache, since a network has more weights than the nearer ones hold.
template <class E>
struct Ahead {
  const E* first;
  int64_t apart;       // from one row to the next
  int64_t row, share;  // the tile's first row, and how many it asks for in 256 of its own
};

template <int V, class E>
ALWAYS_INLINE void fetch(const Ahead<E>& next, int64_t s) {
  const E* row = next.first + (next.row + s * next.share / 256) * next.apart;
  UNROLL for (int v = 0; v < V; ++v) __builtin_prefetch(row + v * LANES<E>, 0, 2);
}

// For Q results whose sources lie one `step` after the other, a row of taps or the single tap: `length`
// sources. The weights of one and of the next lie `apart`.
template <class E, int Q, int V, class... Next>
ALWAYS_INLINE void multiply_row(Vector<E> (&sums)[Q][V], const E* x, int64_t step, const E* w, int64_t apart,
                                int64_t length, const Next&... next) {
  const E* from[(Q + 2) / 3];  // every third has a register, as in narrow.h
  from[0] = x;
  UNROLL for (int i = 1; i < (Q + 2) / 3; ++i) from[i] = from[i - 1] + 3 * step;
  for (int64_t s = 0; s < length; ++s, w += apart) {
    Vector<E> weight[V];
    UNROLL for (int v = 0; v < V; ++v) weight[v] = load(w + v * LANES<E>);
    (fetch<V>(next, s), ...);
    UNROLL for (int q = 0; q < Q; ++q) {
      Vector<E> source = broadcast(from[q / 3][q % 3 * step]);
      UNROLL for (int v = 0; v < V; ++v) add_product<E>(sums[q][v], source, weight[v]);
    }
    UNROLL for (int i = 0; i < (Q + 2) / 3; ++i) {
      ++from[i];
      __asm__("" : "+r"(from[i]));
    }
  }
}

struct RowOfTaps {  // the source at column 0, and the row of the packed kernel
  int64_t source, weights;
};

// Neighbouring results of a row, and their sources. Those of half precision are numbers that were read, or
// that will be written.
template <class E>
struct Row {
  const E* x;                 // column 0 of the first row of taps
  int64_t columns, channels;  // of x, in numbers or pairs: what is left out is padding
  int64_t column, count;      // the first source's column, and how many results there are
  Stored<E>* result;
  int64_t step;  // from one result to the next
};

template <class E>
struct RowLists {
  List<RowOfTaps> rows;
  // The sources of a tile over a border, of each of the rows; or of pixels that crowd the nearest cache.
  List<E> copies;
  List<Wide<E>> sources, results;  // of half precision: as numbers
  List<E> weights;                 // of some filters, where those of the kernel crowd a cache
};

template <class E>
class RowTiles {
  using A = Wide<E>;
  using Result = Stored<E>;
  using Lists = RowLists<E>;
  static constexpr int L = LANES<E>;
  static constexpr bool MANY = REGISTERS == 32;
  const Plan& plan;
  const Gather& g;
  const Finish<A>& finish;
  bool in_place;  // whether sources are read where they are
  int64_t steps;  // numbers or pairs of a group's sources
  int64_t span;   // columns that the taps of a row meet
  bool asks;      // whether a tile of a matrix product asks for the next weights

 public:
  const bool crowded;  // whether weights are copied

  RowTiles(const Plan& plan, Type type, const Problem& p, const Gather& g, const Finish<A>& finish)
      : plan(plan), g(g), finish(finish), in_place(gconv::in_place<E>(type)), steps(g.sources / TERMS<E>),
        span(p.window[2]), asks(g.asks_for_weights(plan, p)), crowded(g.is_crowded<E>(plan)) {}

  // A group's filters from the first, which begins a pair of vectors, to the last.
  template <bool MATRIX>
  void blocks(const Row<E>& row, int64_t group, const E* kernel, Lists& lists, int64_t first,
              int64_t last) const {
    int64_t vectors = ceil_div(last, L);
    // Rows that images have in practice are multiples of 7 or of 8.
    bool eights = row.count % 8 == 0 && row.count % 7;
    for (int64_t v = first / L, block; v < vectors; v += block) {
      block = block_of(vectors - v, 3);
      Gather::Weights<E> w = g.weights(plan, kernel, group, v, block);
      Ahead<E> next{w.first + (plan.packed ? steps : 1) * block * L, w.source, 0, 0};
      if (crowded) w = g.side_by_side(w, block, lists.weights);
      int64_t filters = minimum(block * L, g.results - v * L);
      Result* to = row.result + v * L;
      with_number<3>(block, [&](auto V) {
        if constexpr (MANY && !MATRIX)
          if (eights) return tiles<false, 8, V>(row, 0, w, filters, to, lists, next);
        constexpr int Q = row_tile(REGISTERS, V);
        int64_t begin = 0;
        if constexpr (is_short<MATRIX, V>(Q - 1))
          if (int64_t shorter = (Q - row.count % Q) % Q * (Q - 1); plan.packed && shorter <= row.count) {
            Row<E> some = row;
            some.count = begin = shorter;
            tiles<MATRIX, Q - 1, V>(some, 0, w, filters, to, lists, next);
          }
        tiles<MATRIX, Q, V>(row, begin, w, filters, to, lists, next);
      });
    }
  }

  // What follows, of some channels of `count` pixels from one on, where it has not followed each tile.
  void finish_pixels(int64_t first, int64_t count, int64_t channel, int64_t channels) const {
    if (finish.any() && !finish.ending.any)
      finish({nullptr, first * g.result_channels() + channel, g.result_channels()}, count, channel, channels);
  }

  // The sources of so many columns of each row of taps, [row][column][channel], and zeros beyond the ends.
  // They are copied, or of half precision read as numbers.
  template <class T>
  static void copy(const T* x, int64_t first, int64_t wide, int64_t columns, const List<RowOfTaps>& rows,
                   int64_t channels, List<E>& copies) {
    copies.reserve(rows.size * wide * channels + L);
    int64_t from = minimum(maximum(first, 0), first + wide),
            to = maximum(from, minimum(first + wide, columns));
    E* end = copies.data;
    auto zeros = [&](int64_t count) {
      if (count) memset(end, 0, count * channels * sizeof(E)), end += count * channels;
    };
    for (int64_t i = 0; i < rows.size; ++i) {
      zeros(from - first);
      const T* source = x + rows[i].source + from * channels;
      int64_t count = (to - from) * channels;
      if constexpr (sizeof(T) == sizeof(E))
        memcpy(end, source, count * sizeof(E));
      else
        read(source, count, end);
      end += count;
      zeros(first + wide - to);
    }
  }

 private:
  // With 16 registers a product of 49 pixels, which are 7 x 7, is 5 tiles of 5 and 4 of 6: a last tile of one
  // pixel would take as long as one of 4. Any product of 25 pixels and more has none but these two.
  template <bool MATRIX, int V>
  static constexpr bool is_short(int tile) {
    return MATRIX && !MANY && V > 1 && tile == row_tile(REGISTERS, V) - 1;
  }

  // Results from `begin` to the end of a row. A rest of up to half a tile goes to smaller tiles, a longer one
  // to a tile that ends with it and sums some results to the same again.
  template <bool MATRIX, int Q, int V>
  __attribute__((noinline)) void tiles(const Row<E>& row, int64_t begin, const Gather::Weights<E>& w,
                                       int64_t filters, Result* result, Lists& lists,
                                       const Ahead<E>& next) const {
    bool streams = in_place && plan.streams && (!finish.any() || finish.ending.any) &&
                   finish.results.template whole_lines<Result, V>(result, g.results);
    int64_t channel = finish.ending.any ? finish.results.offset(result) % g.result_channels() : 0;
    int64_t stride = g.axis[2].stride, wide = (Q - 1) * stride + span, step = stride * row.channels;
    for (int64_t q = begin; q < row.count; q += Q) {
      if constexpr (Q > 1 && Q != 8 && !is_short<MATRIX, V>(Q))
        if (int64_t rest = row.count - q; q == begin ? rest < Q : rest <= Q / 2)
          return tiles<MATRIX, Q / 2, V>(row, q, w, filters, result, lists, next);
      q = minimum(q, row.count - Q);
      int64_t first = row.column + q * stride;
      Vector<E> sums[Q][V] = {};
      if constexpr (MATRIX) {
        const E* from = row.x + first * step;
        if (asks) {
          Ahead<E> ahead = next;
          ahead.row = steps * q / row.count, ahead.share = 256 * Q / row.count;
          multiply_row<E, Q, V>(sums, from, step, w.first, w.source, steps, ahead);
        } else {
          multiply_row<E, Q, V>(sums, from, step, w.first, V * L, steps);
        }
      } else {
        bool inside = first >= 0 && first + wide <= row.columns;
        if (!inside) copy(row.x, first, wide, row.columns, lists.rows, steps, lists.copies);
        for (int64_t i = 0; i < lists.rows.size; ++i) {
          const E* from =
              inside ? row.x + lists.rows[i].source + first * steps : lists.copies.data + i * wide * steps;
          multiply_row<E, Q, V>(sums, from, step, w.first + lists.rows[i].weights * V * L, V * L,
                                span * steps);
        }
      }
      Result* to = result + q * row.step;
      auto at = [&](int i) __attribute__((always_inline)) { return to + i * row.step; };
      finish.template put<E>(sums, at, Q, channel, filters, streams);
    }
  }
};

}  // namespace
}  // namespace gconv
