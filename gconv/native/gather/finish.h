// Finishes results of roles y and x: what follows the convolution (epilogue.h), in place, while a stretch of
// them lies in the near caches. So it is one loop for all kernels, and its results are those of a pass of its
// own: of results that have been rounded to their type, rounded once more.

#pragma once

#include "epilogue.h"
#include "gather/gather.h"
#include "gather/results.h"
#include "vectors/elements.h"
#include "vectors/functions.h"

namespace gconv {
namespace {

template <Activation KIND, class V, class A>
ALWAYS_INLINE V activated(V x, A slope) {
  if constexpr (KIND == Activation::relu) return at_least(x, A{0});
  if constexpr (KIND == Activation::relu6) return at_most(at_least(x, A{0}), A{6});
  if constexpr (KIND == Activation::leaky_relu) return x >= 0 ? x : x * slope;
  if constexpr (KIND == Activation::sigmoid) return sigmoid(x);
  if constexpr (KIND == Activation::silu) return x * sigmoid(x);
  if constexpr (KIND == Activation::hard_sigmoid) return activated<Activation::relu6>(x + 3, slope) / 6;
  if constexpr (KIND == Activation::hard_silu) return x * (activated<Activation::relu6>(x + 3, slope) / 6);
  if constexpr (KIND == Activation::tanh) return hyperbolic_tangent(x);
  if constexpr (KIND == Activation::gelu) {  // (1 + tanh(z)) / 2 is sigmoid(2 z)
    V inner = (A)1.59576912160573071176 * (x + (A)0.044715 * (x * x * x));  // 2 sqrt(2 / pi)
    return x * sigmoid(inner);
  }
  if constexpr (KIND == Activation::gelu_exact)
    return (A)0.5 * x * error_function_complement(x * (A)-0.70710678118654752440);  // sqrt(1 / 2)
  return x;
}

// The short kinds of it, of numbers: scale, shift, residual, relu and relu6. They follow a tile at once, or
// are done in registers, since to read results again would take longer. The operations are those of Finish,
// and so are the bits.
template <class A>
class Ending {
  static constexpr int L = LANES<A>;
  const A *scales, *shifts;   // by channel, or nullptr
  const A *first, *residual;  // of all results
  A least, most;

 public:
  const bool any;

  Ending(const Epilogue& e, Type type, const void* result)
      : scales(static_cast<const A*>(e.scale)), shifts(static_cast<const A*>(e.shift)),
        first(static_cast<const A*>(result)), residual(static_cast<const A*>(e.residual)),
        least(e.activation == Activation::none ? -INFINITY : 0),
        most(e.activation == Activation::relu6 ? 6 : INFINITY),
        any(are_numbers<A>(type) && is_any(e) && e.activation <= Activation::relu6) {}

  // Vector v of a tile: of Q pixels the same channels, all of a vector (WHOLE) or `count`, from `channel` on.
  // It will lie `offset` after `at(q)`. What the pixels have in common is asked and read once for all.
  template <bool WHOLE, int Q, int V, class At>
  ALWAYS_INLINE void column(Vector<A> (&tile)[Q][V], int v, const At& at, int64_t offset, int64_t channel,
                            int64_t count) const {
    auto of = [&](const A* from) __attribute__((always_inline)) {
      return WHOLE ? load(from) : load_first(from, count);
    };
    if (scales) {
      Vector<A> scale = of(scales + channel);
      // Rounded: else the sum could be one operation with it.
      UNROLL for (int q = 0; q < Q; ++q) tile[q][v] *= scale, keep(tile[q][v]);
    }
    if (shifts) {
      Vector<A> shift = of(shifts + channel);
      UNROLL for (int q = 0; q < Q; ++q) tile[q][v] += shift;
    }
    if (residual) {
      UNROLL for (int q = 0; q < Q; ++q) tile[q][v] += of(residual + (at(q) + offset - first));
    }
    if (least > -INFINITY) {
      UNROLL for (int q = 0; q < Q; ++q) tile[q][v] = at_least(tile[q][v], least);
    }
    if (most < INFINITY) {
      UNROLL for (int q = 0; q < Q; ++q) tile[q][v] = at_most(tile[q][v], most);
    }
  }

  // Of `count` results, which will lie at `to`, from `channel` on.
  ALWAYS_INLINE Vector<A> operator()(Vector<A> v, const A* to, int64_t channel, int64_t count) const {
    Vector<A> tile[1][1] = {{v}};
    auto at = [&](int) __attribute__((always_inline)) { return to; };
    count < L ? column<false>(tile, 0, at, 0, channel, count) : column<true>(tile, 0, at, 0, channel, L);
    return tile[0][0];
  }
};

// Where some pixels have a channel: offsets in elements of the result.
struct Places {
  const int64_t* list;  // of each pixel, less than 0 for none; nullptr where they are all as far apart
  int64_t first, step;  // what is added to those of a list; else of pixel 0, and from one to the next

  int64_t operator[](int64_t i) const {
    return !list ? first + i * step : list[i] < 0 ? -1 : list[i] + first;
  }
};

template <class A>
class Finish {
  static constexpr int L = LANES<A>;
  static constexpr int64_t NEAR = 256;  // elements that are read as numbers at once
  const Epilogue& epilogue;
  const Type type;  // of results
  void* const result;

 public:
  const Results<A> results;
  const Ending<A> ending;

  Finish(const Epilogue& epilogue, Type operands, const Problem& p, void* result)
      : epilogue(epilogue), type(result_type(operands, p)), result(result), results(operands, p, result),
        ending(epilogue, operands, result) {}

  bool any() const { return is_any(epilogue); }

  // Stores a tile of sums, with what follows them if it is of the short kinds: V vectors with `count`
  // neighbouring channels, from `channel` on, of Q pixels. Of these the first `pixels` are stored, q at
  // `at(q)`.
  template <class E, int Q, int V, class At>
  ALWAYS_INLINE void put(Vector<E> (&tile)[Q][V], const At& at, int64_t pixels, int64_t channel,
                         int64_t count, bool streams) const {
    if (count >= V * L)
      put_vectors<E, true>(tile, at, pixels, channel, L, streams);
    else
      put_vectors<E, false>(tile, at, pixels, channel, count - (V - 1) * L, streams);
  }

  // A tile of results, which lies in the nearest cache; like a stretch, where it is none of the short kinds.
  void tile(const Places& places, int64_t pixels, int64_t channel, int64_t count) const {
    if (!ending.any) return (*this)(places, pixels, channel, count);
    for (int64_t c = 0; c < count; c += L)  // so that scale and shift are at hand for all pixels
      for (int64_t i = 0; i < pixels; ++i) {
        A* at = static_cast<A*>(result) + places[i] + c;
        if (int64_t left = count - c; left < L)
          store_first(at, ending(load_first(at, left), at, channel + c, left), left);
        else
          store(at, ending(load(at), at, channel + c, left));
      }
  }

  // A stretch: `count` neighbouring channels, from `channel` on, of some pixels.
  void operator()(const Places& places, int64_t pixels, int64_t channel, int64_t count) const {
    with_kind<LAST_ACTIVATION>(
        [&](auto kind) { loop<static_cast<Activation>(int64_t(kind))>(places, pixels, channel, count); });
  }

 private:
  // The last vector has `rest` channels unless all are WHOLE.
  template <class E, bool WHOLE, int Q, int V, class At>
  ALWAYS_INLINE void put_vectors(Vector<E> (&tile)[Q][V], const At& at, int64_t pixels, int64_t channel,
                                 int64_t rest, bool streams) const {
    if constexpr (TERMS<E> == 1)
      if (ending.any) {
        UNROLL for (int v = 0; v < V - 1; ++v)
          ending.template column<true>(tile, v, at, v * L, channel + v * L, L);
        constexpr int v = V - 1;
        ending.template column<WHOLE>(tile, v, at, v * L, channel + v * L, rest);
      }
    auto store = [&](auto past_caches) __attribute__((always_inline)) {
      UNROLL for (int q = 0; q < Q; ++q) {
        if (q >= pixels) break;
        UNROLL for (int v = 0; v < V; ++v)
          results.store(at(q) + v * L, tile[q][v], WHOLE || v < V - 1 ? L : rest, past_caches);
      }
    };
    streams ? store(True{}) : store(False{});
  }

  template <int64_t KIND, class F>
  ALWAYS_INLINE void with_kind(const F& f) const {
    if (int64_t(epilogue.activation) == KIND)
      f(Constant<int64_t, KIND>{});
    else if constexpr (KIND > 0)
      with_kind<KIND - 1>(f);
  }

  template <Activation KIND>
  __attribute__((noinline)) void loop(const Places& places, int64_t pixels, int64_t channel,
                                      int64_t count) const {
    // What is not there changes no bit: 1 * x is x, and so is x + -0, also where x is -0.
    A ones[L], zeros[L], near[NEAR], near_residual[NEAR];
    gconv::store(ones, Vector<A>{} + 1), gconv::store(zeros, -Vector<A>{});
    const A* scale = epilogue.scale ? static_cast<const A*>(epilogue.scale) + channel : ones;
    const A* shift = epilogue.shift ? static_cast<const A*>(epilogue.shift) + channel : zeros;
    // Masks of their offsets.
    int64_t scales = epilogue.scale ? -1 : 0, shifts = epilogue.shift ? -1 : 0;
    const char* residual = static_cast<const char*>(epilogue.residual);
    const int64_t bytes = bytes_of<A>(type), chunk = are_numbers<A>(type) ? count : NEAR;
    const A slope = A(epilogue.slope);
    for (int64_t i = 0; i < pixels; ++i) {
      int64_t offset = places[i];
      if (offset < 0) continue;
      for (int64_t first = 0; first < count; first += chunk) {
        int64_t size = minimum(chunk, count - first), at = (offset + first) * bytes;
        void* elements = static_cast<char*>(result) + at;
        A* numbers = static_cast<A*>(elements);
        const A* sum = residual ? reinterpret_cast<const A*>(residual + at) : zeros;
        if (!are_numbers<A>(type)) {
          read(type, elements, size, numbers = near);
          if (residual) read(type, residual + at, size, near_residual), sum = near_residual;
        }
        auto finish = [&](int64_t c, auto whole) __attribute__((always_inline)) {
          auto of = [&](const A* from) __attribute__((always_inline)) {
            return decltype(whole)::value ? load(from) : load_first(from, size - c);
          };
          Vector<A> v = of(numbers + c) * of(scale + ((first + c) & scales));
          keep(v);  // rounded: else the sum would be one operation with it, in some of the loop's copies only
          v += of(shift + ((first + c) & shifts));
          v += of(sum + (residual ? c : 0));
          v = activated<KIND>(v, slope);
          decltype(whole)::value ? gconv::store(numbers + c, v)
                                 : gconv::store_first(numbers + c, v, size - c);
        };
        int64_t c = 0;
        for (; c + L <= size; c += L) finish(c, True{});
        if (c < size) finish(c, False{});
        if (!are_numbers<A>(type)) gconv::write(near, size, type, elements);
      }
    }
  }
};

}  // namespace
}  // namespace gconv
