// The functions of activations, of vectors of float and double.
//
// Of float they are polynomials, fitted with the least relative error to the last bit but one or two. All are
// reckoned from exp of numbers below zero, which neither overflows nor cancels. A NaN stays one. Of double
// they are the C library's, number by number: such networks are rare.

#pragma once

#include <cmath>

#include "vectors/vector.h"

namespace gconv {
namespace {

template <class V>
ALWAYS_INLINE V polynomial(V, float last) {
  return V{} + last;
}
// first + x * (second + x * ...)
template <class V, class... Rest>
ALWAYS_INLINE V polynomial(V x, float first, Rest... rest) {
  return polynomial(x, rest...) * x + first;
}

// Calls f with each number of a vector.
template <class V, class F>
ALWAYS_INLINE V each(V v, const F& f) {
  UNROLL for (size_t i = 0; i < sizeof v / sizeof v[0]; ++i) v[i] = f(v[i]);
  return v;
}

// The greater, or the less, of x and a number; a NaN stays one.
template <class V, class A>
ALWAYS_INLINE V at_least(V x, A least) {
#if defined(__AVX512F__) && VECTOR_BYTES == 64
  if constexpr (sizeof(A) == 4) return (V)_mm512_maskz_max_ps(ALL, (__m512)(V{} + least), (__m512)x);
#elif defined(__AVX2__) && VECTOR_BYTES == 32
  if constexpr (sizeof(A) == 4) return (V)_mm256_max_ps((__m256)(V{} + least), (__m256)x);
#endif
  return x < least ? V{} + least : x;
}
template <class V, class A>
ALWAYS_INLINE V at_most(V x, A most) {
#if defined(__AVX512F__) && VECTOR_BYTES == 64
  if constexpr (sizeof(A) == 4) return (V)_mm512_maskz_min_ps(ALL, (__m512)(V{} + most), (__m512)x);
#elif defined(__AVX2__) && VECTOR_BYTES == 32
  if constexpr (sizeof(A) == 4) return (V)_mm256_min_ps((__m256)(V{} + most), (__m256)x);
#endif
  return x > most ? V{} + most : x;
}

template <class V>
ALWAYS_INLINE V absolute(V x) {
  return x < 0 ? -x : x;
}

// exp(x) of |x| <= 87: x = n * ln 2 + r with a whole n and |r| <= ln 2 / 2, so it is 2^n * exp(r).
ALWAYS_INLINE Floats exp_within(Floats x) {
  constexpr float WHOLE = 12582912.f;  // 1.5 * 2^23: added, it leaves no bits for the fraction
  Floats shifted = x * 1.44269504f + WHOLE, n = shifted - WHOLE;
  Floats r = x - n * 0.693145752f;  // ln 2 in two parts, the first of few bits
  r = r - n * 1.42860677e-6f;
  Floats s = r * r;  // pairs of terms at once, which wait less for each other
  Floats q = polynomial(r, 0.499999934f, 0.166665201f) +
             s * (polynomial(r, 0.0416683943f, 0.00836878062f) + s * 0.00138144648f);
  Word power = ((Word)shifted << 23) + 0x3f800000u;
  return (q * s + (r + 1.f)) * (Floats)power;
}

// exp(x) of x <= 0.
ALWAYS_INLINE Floats exp_below(Floats x) {
  Floats found = exp_within(at_least(x, -87.f));
  return x < -87.f ? Floats{} : found;
}
template <class V>
ALWAYS_INLINE V exp_below(V x) {
  return each(x, [](double v) { return std::exp(v); });
}

ALWAYS_INLINE Floats sigmoid(Floats x) {
  Floats found = 1.f / (1.f + exp_within(-at_most(at_least(x, -87.f), 87.f)));
  return x < -87.f ? Floats{} : found;
}
template <class V>
ALWAYS_INLINE V sigmoid(V x) {
  return each(x, [](double v) { return 1 / (1 + std::exp(-v)); });
}

ALWAYS_INLINE Floats hyperbolic_tangent(Floats x) {
  Floats a = absolute(x), e = exp_below(-2 * a), far = (1 - e) / (1 + e);
  Floats s = x * x;
  Floats q = polynomial(s, -0.333332993f, 0.133319582f, -0.0537866814f, 0.0208053775f, -0.00590586060f);
  return a < 0.6f ? x + x * s * q : x < 0 ? -far : far;
}
template <class V>
ALWAYS_INLINE V hyperbolic_tangent(V x) {
  return each(x, [](double v) { return std::tanh(v); });
}

// 1 - erf(x), which of x >= 0 is exp(-x^2) times a polynomial of 1 / (1 + 0.35 x).
ALWAYS_INLINE Floats error_function_complement(Floats x) {
  Floats a = absolute(x), t = 1 / (1 + 0.35f * a);
  Floats q = polynomial(t, -4.97258185e-5f, 0.198592283f, 0.186363582f, 0.248029842f, -0.0621906415f,
                        0.649500734f, -0.713565123f, 0.820449531f, -0.392205717f, 0.0650752161f);
  Floats above = exp_below(-a * a) * q;
  return x < 0 ? 2 - above : above;
}
template <class V>
ALWAYS_INLINE V error_function_complement(V x) {
  return each(x, [](double v) { return std::erfc(v); });
}

}  // namespace
}  // namespace gconv
