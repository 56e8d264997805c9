// What kernels of depthwise convolution take at once, a strand: the channels that fill a register, as
// numbers. Those of narrow groups take one of bfloat16 too.
//
// Of bfloat16 these may be twice the numbers of a vector. Every 32 bits hold two channels, of which the even
// one is a shift and the odd one a mask away from its number: so the even channels are one vector and the odd
// ones another, and two of their sums make 32 bits again, in fewer instructions than 16 bits are widened to
// 32 and back. Which strand it is the plan says.

#pragma once

#include "vectors/lanes.h"

namespace gconv {
namespace {

struct EvenOdd {
  Floats even, odd;
};

template <class T>
struct Strand {
  using Element = T;
  using Numbers = Vector<T>;
  static constexpr int VECTORS = 1, LANES = gconv::LANES<Wide<T>>;

  ALWAYS_INLINE Numbers load(const T* from) const { return gconv::load(from); }
  ALWAYS_INLINE Numbers load_first(const T* from, int64_t count) const {
    return gconv::load_first(from, count);
  }
  // As elements R: of T, or numbers.
  template <class R>
  ALWAYS_INLINE void store(R* to, Numbers v) const {
    gconv::store(to, v);
  }
  template <class R>
  ALWAYS_INLINE void store_first(R* to, Numbers v, int64_t count) const {
    gconv::store_first(to, v, count);
  }
  template <class R>
  ALWAYS_INLINE void stream(R* to, Numbers v) const {
    gconv::stream(to, v);
  }

  static ALWAYS_INLINE void keep(Numbers& v) { gconv::keep(v); }
  static ALWAYS_INLINE void add(Numbers& sum, Numbers v) { sum += v; }
  static ALWAYS_INLINE void add_product(Numbers& sum, Numbers a, Numbers b) { sum += a * b; }
  // Partial sums, as they lie in a strand.
  static ALWAYS_INLINE Numbers load_sums(const Wide<T>* from) { return gconv::load(from); }
  static ALWAYS_INLINE void store_sums(Wide<T>* to, Numbers v) { gconv::store(to, v); }
};

struct EvenOddStrand {
  using Element = Bf16;

 private:
  // In registers from the beginning of a loop on: the compiler would make them anew for each use.
  Word upper = Word{} + 0xffff0000, half = Word{} + 0x7fff, one = Word{} + 1;

  // Rounds to nearest even; a NaN stays one.
  ALWAYS_INLINE Word rounded(EvenOdd v) const {
    Word even = (Word)v.even, odd = (Word)v.odd;
    even += half + ((even >> 16) & one), odd += half + ((odd >> 16) & one);
#if defined(__AVX512F__) && VECTOR_BYTES == 64
    if (__builtin_expect(_mm512_cmp_ps_mask((__m512)v.even, (__m512)v.odd, _CMP_UNORD_Q) != 0, 0))
#elif defined(__AVX2__) && VECTOR_BYTES == 32
    if (__builtin_expect(_mm256_movemask_ps(_mm256_cmp_ps((__m256)v.even, (__m256)v.odd, _CMP_UNORD_Q)), 0))
#endif
    {
      even = v.even == v.even ? even : (Word)v.even | 0x400000;
      odd = v.odd == v.odd ? odd : (Word)v.odd | 0x400000;
    }
    return (even >> 16) | (odd & upper);
  }

 public:
  using Numbers = EvenOdd;
  static constexpr int VECTORS = 2, LANES = 2 * gconv::LANES<float>;

  ALWAYS_INLINE EvenOddStrand() { gconv::keep(upper), gconv::keep(half), gconv::keep(one); }

  ALWAYS_INLINE Numbers load(const Bf16* from) const {
    Word pairs;
    memcpy(&pairs, from, sizeof pairs);
    gconv::keep(pairs);
    return {(Floats)(pairs << 16), (Floats)(pairs & upper)};
  }
  ALWAYS_INLINE Numbers load_first(const Bf16* from, int64_t count) const {
    Bf16 lanes[LANES] = {};
    for (int64_t i = 0; i < count && i < LANES; ++i) lanes[i] = from[i];
    return load(lanes);
  }
  ALWAYS_INLINE void store(Bf16* to, Numbers v) const {
    Word pairs = rounded(v);
    memcpy(to, &pairs, sizeof pairs);
  }
  ALWAYS_INLINE void store_first(Bf16* to, Numbers v, int64_t count) const {
    Bf16 lanes[LANES];
    store(lanes, v);
    for (int64_t i = 0; i < count && i < LANES; ++i) to[i] = lanes[i];
  }
  ALWAYS_INLINE void stream(Bf16* to, Numbers v) const {
    gconv::stream(reinterpret_cast<float*>(to), (Floats)rounded(v));
  }
  // As numbers.
  ALWAYS_INLINE void store(float* to, Numbers v) const {
    Floats in_turn[] = {v.even, v.odd};
    zip<1>(in_turn, std::make_index_sequence<LANES / 2>{});
    gconv::store(to, in_turn[0]), gconv::store(to + LANES / 2, in_turn[1]);
  }
  ALWAYS_INLINE void store_first(float* to, Numbers v, int64_t count) const {
    float lanes[LANES];
    store(lanes, v);
    for (int64_t i = 0; i < count && i < LANES; ++i) to[i] = lanes[i];
  }
  ALWAYS_INLINE void stream(float* to, Numbers v) const {
    Floats in_turn[] = {v.even, v.odd};
    zip<1>(in_turn, std::make_index_sequence<LANES / 2>{});
    gconv::stream(to, in_turn[0]), gconv::stream(to + LANES / 2, in_turn[1]);
  }

  static ALWAYS_INLINE void keep(Numbers& v) { gconv::keep(v.even), gconv::keep(v.odd); }
  static ALWAYS_INLINE void add(Numbers& sum, Numbers v) { sum.even += v.even, sum.odd += v.odd; }
  static ALWAYS_INLINE void add_product(Numbers& sum, Numbers a, Numbers b) {
    sum.even += a.even * b.even, sum.odd += a.odd * b.odd;
  }
  static ALWAYS_INLINE Numbers load_sums(const float* from) {
    return {gconv::load(from), gconv::load(from + gconv::LANES<float>)};
  }
  static ALWAYS_INLINE void store_sums(float* to, Numbers v) {
    gconv::store(to, v.even), gconv::store(to + gconv::LANES<float>, v.odd);
  }
};

}  // namespace
}  // namespace gconv
