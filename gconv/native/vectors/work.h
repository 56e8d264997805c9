// What a call needs besides vectors: lists, whole numbers, and loops that are shared out to threads.

#pragma once

#include <cstdint>
#include <cstring>

#include "memory.h"
#include "problem.h"
#include "vectors/products.h"

namespace gconv {
namespace {

struct OutOfMemory {};

// Thrown where a list cannot grow. It leaves the loops in between, which need not know of it, and is caught
// at the end of the range of units that a thread is at (for_ranges) and at the end of the call (unit.cc): no
// thread pool and no C function can pass it on.
[[noreturn, gnu::cold, gnu::noinline]] inline void out_of_memory() { throw OutOfMemory{}; }

// A growing list whose code, unlike std::vector's, is this instruction set's own. The first items lie in it:
// to allocate and free the lists of a small problem would take as long as its sums.
template <class T>
struct List {
  T first[16];
  T* data = first;
  int64_t size = 0, room = 16;
  int64_t bytes = 0;  // of memory that was taken
  List() {}
  List(const List&) = delete;
  List& operator=(const List&) = delete;
  ~List() {
    if (data != first) give_memory(data, bytes);
  }
  // Room for so many items, from the beginning of a line of the cache on if they do not lie in the list.
  T* reserve(int64_t more) {
    if (more <= room) return data;
    int64_t taken = (more > 2 * room ? more : 2 * room) * int64_t(sizeof(T));
    T* moved = static_cast<T*>(take_memory(taken));
    if (!moved) out_of_memory();
    memcpy(moved, data, size * sizeof(T));
    if (data != first) give_memory(data, bytes);
    data = moved, bytes = taken, room = bytes / int64_t(sizeof(T));
    return data;
  }
  void push(const T& item) {
    if (size == room) reserve(size + 1);
    data[size++] = item;
  }
  T* begin() { return data; }
  T* end() { return data + size; }
  const T& operator[](int64_t i) const { return data[i]; }
  T& operator[](int64_t i) { return data[i]; }
};

// parallel.run with a lambda of a range, of which each unit is about `work` operations on vectors: a range
// takes microseconds.
template <class F>
void for_ranges(const Parallel& parallel, int64_t units, int64_t work, const F& body) {
  int64_t grain = maximum(1, (int64_t{1} << 14) / maximum(work, 1));
  auto run = [](void* f, int64_t first, int64_t last) {
    bool done = false;
    try {
      (*static_cast<const F*>(f))(first, last);
      done = true;
    } catch (OutOfMemory) {  // by value, and with no call here: Clang would add a function that the linker
                             // may share
    }
    if (!done) fence();  // of what the range has stored past the caches already
    return done;
  };
  if (!parallel.run(parallel, units, grain, run, const_cast<F*>(&body))) out_of_memory();
}

// The same with a lambda of one unit.
template <class F>
void for_each(const Parallel& parallel, int64_t units, int64_t work, const F& body) {
  for_ranges(parallel, units, work, [&](int64_t first, int64_t last) {
    for (int64_t unit = first; unit < last; ++unit) body(unit);
  });
}

// In how many parts, up to `most`, to cut each of some units of work: so that a thread that begins late can
// do less than others.
inline int64_t parts_of(const Parallel& parallel, int64_t units, int64_t most) {
  return minimum(most, ceil_div(16 * parallel.threads, maximum(units, 1)));
}

}  // namespace
}  // namespace gconv
