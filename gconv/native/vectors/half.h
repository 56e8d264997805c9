// From and to half precision, as many elements as a vector has floats.

#pragma once

#include "vectors/types.h"

namespace gconv {
namespace {

#if defined(__AVX512F__) && VECTOR_BYTES == 64
constexpr __mmask16 ALL =
    0xffff;  // GCC 12's header reads a variable that has no value where there is no mask, and warns of it
#endif

// __builtin_convertvector in one instruction, where GCC 12 makes four of it, and in two, where it makes five.
ALWAYS_INLINE Word words(Half h) {
#if defined(__AVX512F__) && VECTOR_BYTES == 64
  return (Word)_mm512_maskz_cvtepu16_epi32(ALL, (__m256i)h);
#elif defined(__AVX2__) && VECTOR_BYTES == 32
  return (Word)_mm256_cvtepu16_epi32((__m128i)h);
#else
  return __builtin_convertvector(h, Word);
#endif
}
ALWAYS_INLINE Half halves(Word w) {  // of words below 2^16
#if !defined(__AVX512F__) && defined(__AVX2__) && VECTOR_BYTES == 32
  return (Half)_mm_packus_epi32(_mm256_castsi256_si128((__m256i)w), _mm256_extracti128_si256((__m256i)w, 1));
#else
  return __builtin_convertvector(w, Half);
#endif
}

ALWAYS_INLINE Floats widen(Half h, Bf16) { return (Floats)(words(h) << 16); }

// To nearest even. A NaN is not rounded, which could carry into its exponent: as it comes from a sum or a
// product it is quiet, so what makes it one lies in the upper half.
ALWAYS_INLINE Half narrow(Floats f, Bf16) {
  Word bits = (Word)f;
#if defined(__AVX512F__) && VECTOR_BYTES == 64
  // In five instructions, where GCC 12 makes eight of the lines below.
  constexpr uint16_t
      __attribute__((vector_size(64))) UPPER = {1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
  __mmask16 number = _mm512_cmp_ps_mask((__m512)f, (__m512)f, _CMP_ORD_Q);
  __mmask16 odd = _mm512_mask_test_epi32_mask(number, (__m512i)bits, (__m512i)(Word{} + 0x10000));
  __m512i sum = _mm512_mask_add_epi32((__m512i)bits, number, (__m512i)bits, (__m512i)(Word{} + 0x7fff));
  sum = _mm512_mask_add_epi32(sum, odd, sum, (__m512i)(Word{} + 1));
  sum = _mm512_maskz_permutexvar_epi16(~__mmask32{0}, (__m512i)UPPER, sum);
  Half first;
  memcpy(&first, &sum, sizeof first);
  return first;
#else
  Word half = ((bits >> 16) & 1) + 0x7fff;
  return halves((bits + (f == f ? half : Word{})) >> 16);
#endif
}

#if defined(__AVX512F__) && VECTOR_BYTES == 64
ALWAYS_INLINE Floats widen(Half h, F16) { return (Floats)_mm512_maskz_cvtph_ps(ALL, (__m256i)h); }
ALWAYS_INLINE Half narrow(Floats f, F16) {
  return (Half)_mm512_maskz_cvtps_ph(ALL, (__m512)f, _MM_FROUND_TO_NEAREST_INT);
}
#elif defined(__F16C__) && VECTOR_BYTES == 32
ALWAYS_INLINE Floats widen(Half h, F16) { return (Floats)_mm256_cvtph_ps((__m128i)h); }
ALWAYS_INLINE Half narrow(Floats f, F16) {
  return (Half)_mm256_cvtps_ph((__m256)f, _MM_FROUND_TO_NEAREST_INT);
}
#else
ALWAYS_INLINE Floats select(Word mask, Floats a, Floats b) {
  return (Floats)(((Word)a & mask) | ((Word)b & ~mask));
}

ALWAYS_INLINE Floats widen(Half h, F16) {
  Word bits = words(h), magnitude = (bits & 0x7fff) << 13, sign = (bits & 0x8000) << 16;
  Word exponent = magnitude & 0x0f800000;
  Word normal = magnitude + (112u << 23);
  normal += (Word)(exponent == 0x0f800000) & (112u << 23);                             // infinity and NaN
  Floats tiny = (Floats)(magnitude + (113u << 23)) - (Floats)(Word{} + (113u << 23));  // of subnormals, exact
  return (Floats)((Word)select((Word)(exponent == 0), tiny, (Floats)normal) | sign);
}

ALWAYS_INLINE Half narrow(Floats f, F16) {  // to nearest even
  Word bits = (Word)f, sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  Word normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - (112u << 23)) >> 13;
  Floats shifted =
      (Floats)magnitude + (Floats)(Word{} + (126u << 23));  // 0.5 has one unit in the place of F16's smallest
  Word tiny = (Word)shifted - (126u << 23);
  Word small = (Word)(magnitude < (113u << 23));
  Word result = (tiny & small) | (normal & ~small);
  Word large = (Word)(magnitude >= (143u << 23));
  result = (result & ~large) | (0x7c00 & large);
  Word over = (Word)(result > 0x7c00);
  result = (result & ~over) | (0x7c00 & over);
  Word nan = (Word)(magnitude > 0x7f800000);
  result = (result & ~nan) | (0x7e00 & nan);
  return halves(result | sign);
}
#endif

}  // namespace
}  // namespace gconv
