// From and to half precision, as many elements as a vector has floats.

#pragma once

#include "vectors/types.h"

namespace gconv {
namespace {

ALWAYS_INLINE Floats widen(Half h, Bf16) { return (Floats)(__builtin_convertvector(h, Word) << 16); }

ALWAYS_INLINE Half narrow(Floats f, Bf16) {  // to nearest even; a NaN stays one
  Word bits = (Word)f, rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return __builtin_convertvector((f == f ? rounded : bits | 0x400000) >> 16, Half);
}

#if defined(__AVX512F__) && VECTOR_BYTES == 64
constexpr __mmask16 ALL =
    0xffff;  // GCC 12's header reads a variable that has no value where there is no mask, and warns of it
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
  Word bits = __builtin_convertvector(h, Word), magnitude = (bits & 0x7fff) << 13,
       sign = (bits & 0x8000) << 16;
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
  return __builtin_convertvector(result | sign, Half);
}
#endif

}  // namespace
}  // namespace gconv
