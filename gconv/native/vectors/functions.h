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

template <class V>
ALWAYS_INLINE V absolute(V x) {
  return x < 0 ? -x : x;
}

// exp(x) of x <= 0: x = n * ln 2 + r with a whole n and |r| <= ln 2 / 2, so it is 2^n * exp(r).
ALWAYS_INLINE Floats exp_below(Floats x) {
  constexpr float WHOLE = 12582912.f;  // 1.5 * 2^23: added, it leaves no bits for the fraction
  Floats within = x < -87.f ? Floats{} - 87.f : x;
  Floats shifted = within * 1.44269504f + WHOLE, n = shifted - WHOLE;
  Floats r = within - n * 0.693145752f;  // ln 2 in two parts, the first of few bits
  r = r - n * 1.42860677e-6f;
  Floats q = polynomial(r, 0.499999934f, 0.166665201f, 0.0416683943f, 0.00836878062f, 0.00138144648f);
  Word power = ((Word)shifted << 23) + 0x3f800000u;
  Floats found = (q * r * r + r + 1.f) * (Floats)power;
  return x < -87.f ? Floats{} : found;
}
template <class V>
ALWAYS_INLINE V exp_below(V x) {
  return each(x, [](double v) { return std::exp(v); });
}

template <class V>
ALWAYS_INLINE V sigmoid(V x) {
  V e = exp_below(-absolute(x));
  return (x < 0 ? e : V{} + 1) / (1 + e);
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
