// Elements of half precision, for kernels that compute with numbers.
//
// Numbers are of the type A that sums are formed in: float or double. Elements of float32 and float64 are
// numbers already. Those of bfloat16 and float16 are read into a buffer as numbers, and a kernel's results
// are written from a buffer as elements. So one copy of a kernel's loops does for float32, bfloat16 and
// float16.

#pragma once

#include "problem.h"
#include "vectors/work.h"

namespace gconv {
namespace {

// Whether elements are numbers already.
template <class A>
bool are_numbers(Type type) {
  return sizeof(A) == 8 || type == Type::f32;
}

template <class A>
int64_t bytes_of(Type type) {
  return are_numbers<A>(type) ? sizeof(A) : 2;
}

// Whether elements are read where they are: as the numbers that they are, or as pairs.
template <class E>
bool in_place(Type type) {
  return TERMS<E> == 2 || are_numbers<Wide<E>>(type);
}

// Calls f with an element of this type, for kernels that compute with numbers or pairs E.
template <class E, class F>
ALWAYS_INLINE void with_element(Type type, const F& f) {
  if constexpr (sizeof(E) == 8)
    f(double{});
  else if constexpr (TERMS<E> == 2)
    f(Bf16{});
  else if (type == Type::f32)
    f(float{});
  else if (type == Type::bf16)
    f(Bf16{});
  else
    f(F16{});
}

// Reads `count` elements as numbers. What follows these, up to a whole vector, becomes zero.
template <class T>
ALWAYS_INLINE void read(const T* from, int64_t count, Wide<T>* to) {
  constexpr int L = LANES<Wide<T>>;
  int64_t i = 0;
  for (; i + L <= count; i += L) store(to + i, load(from + i));
  if (i < count) store(to + i, load_first(from + i, count - i));
}

// Copies `count` pairs, likewise.
ALWAYS_INLINE void read(const Pair* from, int64_t count, Pair* to) {
  constexpr int L = LANES<Pair>;
  int64_t i = 0;
  for (; i + L <= count; i += L) store(to + i, load(from + i));
  if (i < count) store(to + i, load_first(from + i, count - i));
}

// Writes `count` numbers as elements.
template <class T>
ALWAYS_INLINE void write(const Wide<T>* from, int64_t count, T* to) {
  constexpr int L = LANES<Wide<T>>;
  int64_t i = 0;
  for (; i + L <= count; i += L) store(to + i, load(from + i));
  if (i < count) store_first(to + i, load_first(from + i, count - i), count - i);
}

// The same for a type that is known when it runs.
template <class A>
__attribute__((noinline)) void read(Type type, const void* from, int64_t count, A* to) {
  with_element<A>(type, [&](auto element) { read(static_cast<const decltype(element)*>(from), count, to); });
}
template <class A>
__attribute__((noinline)) void write(const A* from, int64_t count, Type type, void* to) {
  with_element<A>(type, [&](auto element) { write(from, count, static_cast<decltype(element)*>(to)); });
}

// Rows of elements that were read as numbers, of which the last ones are kept.
template <class A>
class KeptRows {
  List<A> numbers;
  List<int64_t> keys, turns;  // of each place: the row that it has, and when that was asked for last
  int64_t origin = 0, room = 0, next = 0, turn = 0;

 public:
  // Begins a turn, in which up to `rows` rows of `length` numbers from `first` on are asked for. Rows of
  // another part are not kept.
  void begin(int64_t rows, int64_t first, int64_t length) {
    int64_t whole = ceil_div(length, LANES<A>) * LANES<A>;
    if (++turn > 1 && first == origin && whole == room && 2 * rows <= keys.size) return;
    origin = first, room = whole, next = keys.size = turns.size = 0;
    for (int64_t i = 0; i < 2 * rows; ++i) keys.push(-1), turns.push(0);
    numbers.reserve(2 * rows * room);
  }
  void forget() {
    for (int64_t& key : keys) key = -1;
  }
  const A* all() const { return numbers.data; }

  // Where the row `key` lies among all, after fill(to) has read it unless it was kept.
  template <class F>
  int64_t place(int64_t key, const F& fill) {
    for (int64_t i = 0; i < keys.size; ++i)
      if (keys[i] == key) return turns[i] = turn, i * room;
    while (turns[next] == turn) next = (next + 1) % keys.size;
    keys[next] = key, turns[next] = turn;
    fill(numbers.data + next * room);
    return next * room;
  }
};

}  // namespace
}  // namespace gconv
