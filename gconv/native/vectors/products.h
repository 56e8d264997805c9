// What sums are made of: products of numbers, or of pairs.
//
// A pair is two neighbouring elements of bfloat16. Where the processor has an instruction that adds both
// products of two pairs to a sum in float32 (AVX512-BF16), kernels of wide groups take pairs where they take
// numbers otherwise: they are as long, and half as many. That instruction takes numbers below the smallest
// normal one for zeros.

#pragma once

#include "vectors/vector.h"

namespace gconv {
namespace {

struct Pair {
  uint32_t bits;
};

// Elements in what a sum takes at once, and the elements that sums are stored as.
template <class E>
constexpr int TERMS = std::is_same_v<E, Pair> ? 2 : 1;
template <class E>
using Stored = std::conditional_t<std::is_same_v<E, Pair>, Bf16, E>;

// Pairs lie in vectors of floats, whose bits they are.
ALWAYS_INLINE Floats broadcast(Pair x) { return (Floats)(x.bits - Word{}); }

// Adds the products of numbers, or both products of pairs.
template <class E>
ALWAYS_INLINE void add_product(Vector<E>& sum, Vector<E> a, Vector<E> b) {
  if constexpr (!std::is_same_v<E, Pair>) {
    sum += a * b;
  } else {
#if defined(__AVX512BF16__) && VECTOR_BYTES == 64
    sum = (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#elif defined(__AVX512BF16__) && VECTOR_BYTES == 32
    sum = (Floats)_mm256_dpbf16_ps((__m256)sum, (__m256bh)a, (__m256bh)b);
#else  // for the fuzzer, on any processor
    sum += (Floats)((Word)a & 0xffff0000) * (Floats)((Word)b & 0xffff0000);
    sum += (Floats)((Word)a << 16) * (Floats)((Word)b << 16);
#endif
  }
}

// The first element of each pair, and a zero.
template <class E>
ALWAYS_INLINE Vector<E> first_terms(Vector<E> v) {
  return TERMS<E> == 1 ? v : (Vector<E>)((Word)v & 0xffff);
}

// Two rows of elements as pairs of one from each.
ALWAYS_INLINE Floats pairs_of(const Bf16* first, const Bf16* second, int64_t count) {
  auto words = [&](const Bf16* row) __attribute__((always_inline)) {
    return (Word)(count >= LANES<Pair> ? load(row)
                                       : load_first(row, count));  // elements are the upper halves
  };
  return (Floats)((words(first) >> 16) | words(second));
}

}  // namespace
}  // namespace gconv
