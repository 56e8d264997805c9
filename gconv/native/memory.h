// Memory for the kernels' lists, which are made thousands of times a second and live for microseconds.
//
// A thread keeps what it gives back, up to a megabyte, for its next lists. The C library does so up to a
// kilobyte; beyond that it takes a lock, for which threads wait where they share one arena, as with
// MALLOC_ARENA_MAX=1. Without the lock the grouped 3 x 3 convolutions of RegNetX took 0.55 to 0.95 of their
// time (one image, 2 threads of a Zen 3, 2026-11-29).

#pragma once

#include <cstdint>

namespace gconv {

// Memory of at least so many bytes, or nullptr if there is none. `bytes` becomes its size. It begins with a
// line of the cache, so that vectors do not cross lines: with lists that began anywhere the time of grouped
// convolutions in half precision, which read numbers into a list, differed by a tenth from one process to
// another (2 threads of an Emerald Rapids, 2026-11-30).
void* take_memory(int64_t& bytes);

// Gives it back, from the thread that took it or any other.
void give_memory(void* memory, int64_t bytes);

}  // namespace gconv
