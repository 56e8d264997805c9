// How the passes of norm.h read an array of rows and channels.
//
// Rows of few channels are folded: so many rows are read as one row of whole vectors that their channels
// repeat in it. The rows that are left at the end, fewer than are folded, are read number by number.

#pragma once

#include "norm/norm.h"
#include "vectors/vector.h"
#include "vectors/work.h"

namespace gconv {
namespace {

// The array as the passes read it.
struct Folded {
  int64_t fold;    // rows that are one
  int64_t rows;    // of the folded rows
  int64_t length;  // numbers of a folded row
  int64_t tail;    // numbers that are left after them
};

template <class T>
Folded folded(const Norm& p) {
  int64_t lanes = LANES<Wide<T>>, fold = 1;
  if (p.channels < 4 * lanes)
    while (fold * p.channels % lanes) ++fold;
  return {fold, p.rows / fold, fold * p.channels, p.rows % fold * p.channels};
}

// A list of numbers with room for a whole last vector, zeros at first.
template <class A>
struct Numbers {
  List<A> list;
  A* data = nullptr;
  void make(int64_t size) {
    data = list.reserve(size + 2 * LANES<A>);
    for (int64_t i = 0; i < size + LANES<A>; i += LANES<A>) store(data + i, Vector<A>{});
  }
  // `of` for each channel, as often as rows are folded.
  void repeat(const A* of, int64_t channels, int64_t fold) {
    make(channels * fold);
    for (int64_t i = 0; i < channels * fold; ++i) data[i] = of[i % channels];
  }
};

template <class T>
struct Factors {
  using A = Wide<T>;
  Numbers<A> mean, scale, bias;
  Factors(const void* factors, const Norm& p, const Folded& f) {
    const A* of = static_cast<const A*>(factors);
    mean.repeat(of, p.channels, f.fold), scale.repeat(of + p.channels, p.channels, f.fold);
    bias.repeat(of + 2 * p.channels, p.channels, f.fold);
  }
};

// One vector of a row, or its first `count` numbers: WHOLE is whether the vector is full.
template <bool WHOLE, class T>
ALWAYS_INLINE Vector<T> read(const T* from, int64_t count) {
  if constexpr (WHOLE)
    return load(from);
  else
    return load_first(from, count);
}
template <bool WHOLE, class T>
ALWAYS_INLINE void write(T* to, Vector<T> v, int64_t count) {
  if constexpr (WHOLE)
    store(to, v);
  else
    store_first(to, v, count);
}

// Calls body(whole, at, count) for the vectors of [first, last), of which the last may be in part.
template <class T, class F>
ALWAYS_INLINE void for_vectors(int64_t first, int64_t last, const F& body) {
  constexpr int64_t N = LANES<Wide<T>>;
  int64_t at = first;
  for (; at + N <= last; at += N) body(True{}, at, N);
  if (at < last) body(False{}, at, last - at);
}

// Calls body(rows of a tile, first row) for [first, last), in tiles of ROWS and of one.
template <int ROWS, class F>
ALWAYS_INLINE void for_tiles(int64_t first, int64_t last, const F& body) {
  int64_t row = first;
  for (; row + ROWS <= last; row += ROWS) body(Number<ROWS>{}, row);
  for (; row < last; ++row) body(Number<1>{}, row);
}

// --- one number or vector ----------------------------------------------------------------------------------

// relu of a vector, which keeps a NaN.
template <class V>
ALWAYS_INLINE V rectified(V z) {
  auto dropped = z <= V{};
  return (V)((decltype(dropped))z & ~dropped);
}

// dz of vectors or of numbers.
template <bool RELU, class V>
ALWAYS_INLINE V cotangent(V dy, V z) {
  if constexpr (!RELU) {
    return dy;
  } else if constexpr (std::is_floating_point_v<V>) {
    return z > 0 ? dy : 0;
  } else {
    auto kept = z > V{};
    return (V)((decltype(kept))dy & kept);
  }
}

}  // namespace
}  // namespace gconv
