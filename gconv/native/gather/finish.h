// Finishes results of roles y and x: what follows the convolution (epilogue.h), in place, while a stretch of
// them lies in the near caches. So it is one loop for all kernels and not part of any, and its results are
// those of a pass of its own: of results that have been rounded to their type, rounded once more.

#pragma once

#include "epilogue.h"
#include "gather/gather.h"
#include "vectors/elements.h"
#include "vectors/functions.h"

namespace gconv {
namespace {

template <Activation KIND, class V, class A>
ALWAYS_INLINE V activated(V x, A slope) {
  if constexpr (KIND == Activation::relu) return x < 0 ? V{} : x;
  if constexpr (KIND == Activation::relu6) return x < 0 ? V{} : x > 6 ? V{} + 6 : x;
  if constexpr (KIND == Activation::leaky_relu) return x >= 0 ? x : x * slope;
  if constexpr (KIND == Activation::sigmoid) return sigmoid(x);
  if constexpr (KIND == Activation::silu) return x * sigmoid(x);
  if constexpr (KIND == Activation::hard_sigmoid) return activated<Activation::relu6>(x + 3, slope) / 6;
  if constexpr (KIND == Activation::hard_silu) return x * (activated<Activation::relu6>(x + 3, slope) / 6);
  if constexpr (KIND == Activation::tanh) return hyperbolic_tangent(x);
  if constexpr (KIND == Activation::gelu) {
    V inner = (A)0.79788456080286535588 * (x + (A)0.044715 * (x * x * x));  // sqrt(2 / pi)
    return x * ((A)0.5 * (1 + hyperbolic_tangent(inner)));
  }
  if constexpr (KIND == Activation::gelu_exact)
    return (A)0.5 * x * error_function_complement(x * (A)-0.70710678118654752440);  // sqrt(1 / 2)
  return x;
}

template <class A>
class Finish {
  const Epilogue& epilogue;
  const Type type;
  const char* const result;  // the first element of all

 public:
  Finish(const Epilogue& epilogue, Type type, const void* result)
      : epilogue(epilogue), type(type), result(static_cast<const char*>(result)) {}

  bool any() const { return epilogue.any(); }

  // `count` neighbouring channels, from `channel` on, of some pixels, of which pixel i has the first of them
  // at the element offset(i) of the result. Less than 0 stands for none.
  template <class F>
  void pixels(int64_t pixels, int64_t channel, int64_t count, const F& offset) const {
    for (int64_t i = 0; i < pixels; ++i)
      if (int64_t at = offset(i); at >= 0) one(at, channel, count);
  }

 private:
  __attribute__((noinline)) void one(int64_t offset, int64_t channel, int64_t count) const {
    with_element<A>(type, [&](auto element) {
      using T = decltype(element);
      with_kind<ACTIVATIONS>(
          [&](auto kind) { loop<T, static_cast<Activation>(int64_t(kind))>(offset, channel, count); });
    });
  }

  template <int64_t KIND, class F>
  ALWAYS_INLINE void with_kind(const F& f) const {
    if (int64_t(epilogue.activation) == KIND)
      f(Constant<int64_t, KIND>{});
    else if constexpr (KIND > 0)
      with_kind<KIND - 1>(f);
  }

  template <class T, Activation KIND>
  __attribute__((noinline)) void loop(int64_t offset, int64_t channel, int64_t count) const {
    constexpr int L = LANES<A>;
    T* at = reinterpret_cast<T*>(const_cast<char*>(result)) + offset;
    const T* added = epilogue.residual ? static_cast<const T*>(epilogue.residual) + offset : nullptr;
    const A* scale = epilogue.scale ? static_cast<const A*>(epilogue.scale) + channel : nullptr;
    const A* shift = epilogue.shift ? static_cast<const A*>(epilogue.shift) + channel : nullptr;
    A slope = A(epilogue.slope);
    auto finished = [&](Vector<A> v, const auto& of) __attribute__((always_inline)) {
      if (scale) v *= of(scale);
      keep(v);  // else only some of the loop's copies would add the shift without rounding the product
      if (shift) v += of(shift);
      if (added) v += of(added);
      return activated<KIND>(v, slope);
    };
    int64_t c = 0;
    for (; c + L <= count; c += L)
      store(
          at + c,
          finished(load(at + c), [&](auto* from) __attribute__((always_inline)) { return load(from + c); }));
    if (c < count) {
      int64_t rest = count - c;
      auto some = [&](auto* from) __attribute__((always_inline)) { return load_first(from + c, rest); };
      store_first(at + c, finished(some(static_cast<const T*>(at)), some), rest);
    }
  }
};

}  // namespace
}  // namespace gconv
