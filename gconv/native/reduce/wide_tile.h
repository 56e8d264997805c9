// The register tile of role w of wide groups: J channels by V vectors of filters of one tap. It runs along
// the pixels of a stretch:
//
//   for each pixel:  V loads of y;  for each of J channels: 1 broadcast load of x, V multiply-adds
//
// J + V loads for J * V multiply-adds: 8 for 12 with (J, V) = (6, 2), 9 for 8 with (8, 1). A single vector
// therefore meets 3 taps at a time. Where neighbouring taps are as far apart as columns, they share each x,
// which they meet in neighbouring columns: 8 + 3 loads for 24 multiply-adds, with 16 registers 4 + 3 for 12.
// Else they share y. A vector that is at most half full holds its filters twice and meets two channels (see
// lanes.h).
//
// Or, of pairs (vectors/products.h), along two pixels at a time. Every pixel begins a pair, since columns
// that find a tap begin anywhere; the last of an odd number of columns takes the first half of its pair.

#pragma once

#include "reduce/reduce.h"
#include "vectors/lanes.h"

namespace gconv {
namespace {

// A pass of the tile over the rows of a stretch: some taps of a row, and the columns that they meet.
template <class E>
struct WidePass {
  const E *x, *y;              // the first tap's, of column 0 in a row that begins at 0
  int64_t x_tap, y_tap;        // from what a tap meets to what the next one does
  int64_t x_column, y_column;  // from a column to the next
  const List<RowPair>* rows;
  int64_t from, to;  // columns; of x, where taps share each
  int64_t taps, channels;
};

// Not inlined: among the loops around it there would be too few registers for the addresses.
template <class E, int TAPS, int J, int V, bool TABLE, bool SHARE, bool TWICE>
__attribute__((noinline)) void sum_products(const WidePass<E>& at, int64_t first, const int64_t* offsets,
                                            Wide<E>* partial, int64_t tap_stride, int64_t channel_stride) {
  constexpr int L = LANES<E>, T = TERMS<E>;
  Vector<E> sums[TAPS][J][V] = {};
  int64_t offset[J];
  UNROLL for (int j = 0; j < J; ++j) offset[j] = TABLE ? offsets[j] : TWICE ? 2 * j : j;
  const int64_t x_tap = at.x_tap, y_tap = at.y_tap, x_column = at.x_column, y_column = at.y_column,
                columns = at.to - at.from;
  const E *x = at.x + first + at.from * x_column, *y = at.y + at.from * y_column;
  auto add = [&](const E* theirs, const E* ours, auto whole) __attribute__((always_inline)) {
    auto part = [](Vector<E> v) __attribute__((always_inline)) {
      return decltype(whole)::value ? v : first_terms<E>(v);
    };
    Vector<E> out[SHARE ? TAPS : 1][V];
    UNROLL for (int t = 0; t < (SHARE ? TAPS : 1); ++t) UNROLL
    for (int v = 0; v < V; ++v) out[t][v] = part(load(ours + t * y_tap + v * L));
    UNROLL for (int j = 0; j < J; ++j) {
      Vector<E> in;
      UNROLL for (int t = 0; t < TAPS; ++t) {
        if (const E* at_tap = theirs + t * x_tap + offset[j]; !SHARE || t == 0)
          in = part(TWICE ? broadcast_pair(at_tap) : broadcast(*at_tap));
        UNROLL for (int v = 0; v < V; ++v) add_product<E>(sums[t][j][v], in, out[SHARE ? t : 0][v]);
      }
    }
  };
  for (const RowPair *row = at.rows->data, *end = row + at.rows->size; row < end; ++row) {
    const E *theirs = x + row->x, *ours = y + row->y;
    int64_t left = columns;
    for (; left >= T; left -= T, theirs += T * x_column, ours += T * y_column) add(theirs, ours, True{});
    if (T == 2 && left) add(theirs, ours, False{});
  }
  UNROLL for (int t = 0; t < TAPS; ++t) UNROLL
  for (int j = 0; j < J; ++j) UNROLL
  for (int v = 0; v < V; ++v) {
    Wide<E>* to_sum = partial + t * tap_stride + j * channel_stride + v * L;
    store(to_sum, load(to_sum) + sums[t][j][v]);
  }
}

}  // namespace
}  // namespace gconv
