// Where results of roles y and x are stored: as elements of the operands' type; or, of half precision, as
// numbers that are not rounded.

#pragma once

#include "vectors/elements.h"

namespace gconv {
namespace {

// Kernels count in elements of the operands' type, as if results were of it: `to` is where a result would lie
// then. A loop that stores has a copy of its own, which stays in registers.
template <class A>
class Results {
  static constexpr int L = LANES<A>;
  void* const first;
  const Type type;
  const bool widens;  // whether results are numbers where operands are not

 public:
  Results(Type operands, const Problem& p, void* first)
      : first(first), type(result_type(operands, p)), widens(p.widens) {}

  // `count` results, or all that a vector has.
  template <class T>
  ALWAYS_INLINE void store(T* to, Vector<T> v, int64_t count, bool streams) const {
    if constexpr (sizeof(T) == 2)
      if (__builtin_expect(widens, 0)) return put_numbers(number(to), v, count, streams);
    put(to, v, count, streams);
  }
  template <class T>
  ALWAYS_INLINE void store_one(T* to, A v) const {
    if constexpr (sizeof(T) == 2)
      if (__builtin_expect(widens, 0)) return void(*number(to) = v);
    *to = rounded<T>(v);
  }
  // The same of a strand: vectors/strand.h.
  template <class S, class T>
  ALWAYS_INLINE void store_strand(const S& strand, T* to, typename S::Numbers v, int64_t count,
                                  bool streams) const {
    if constexpr (sizeof(T) == 2)
      if (__builtin_expect(widens, 0)) {
        if constexpr (S::VECTORS == 2)
          return put_both<S>(number(to), v.even, v.odd, count, streams);
        else
          return put_numbers(number(to), v, count, streams);
      }
    if (count < S::LANES)
      strand.store_first(to, v, count);
    else
      streams ? strand.stream(to, v) : strand.store(to, v);
  }
  // From a buffer of numbers.
  void write(const A* from, int64_t count, void* to) const {
    gconv::write(from, count, type, widens ? number(static_cast<Bf16*>(to)) : to);
  }

  // Elements from the first result to one.
  template <class T>
  int64_t offset(const T* to) const {
    return to - static_cast<const T*>(first);
  }

  // See vectors/vector.h.
  template <class T, int V>
  bool whole_lines(T* to, int64_t channels) const {
    if constexpr (sizeof(T) == 2)
      if (widens) return gconv::whole_lines<A, V>(number(to), channels);
    return gconv::whole_lines<T, V>(to, channels);
  }

 private:
  template <class T>
  ALWAYS_INLINE A* number(T* to) const {
    return static_cast<A*>(first) + (to - static_cast<T*>(first));
  }
  template <class T>
  static ALWAYS_INLINE void put(T* to, Vector<T> v, int64_t count, bool streams) {
    if (count < L)
      store_first(to, v, count);
    else
      streams ? stream(to, v) : gconv::store(to, v);
  }
  static __attribute__((noinline)) void put_numbers(A* to, Vector<A> v, int64_t count, bool streams) {
    put(to, v, count, streams);
  }
  // Two vectors as two arguments, which are in registers.
  template <class S>
  static __attribute__((noinline)) void put_both(A* to, Vector<A> even, Vector<A> odd, int64_t count,
                                                 bool streams) {
    const S strand;
    if (count < S::LANES)
      strand.store_first(to, {even, odd}, count);
    else
      streams ? strand.stream(to, {even, odd}) : strand.store(to, {even, odd});
  }
};

}  // namespace
}  // namespace gconv
