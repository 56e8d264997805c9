#include "memory.h"

#include <cstdlib>
#include <new>

#include "problem.h"

namespace gconv {
namespace {

// Sanitizers watch each request, so nothing is kept from them.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int64_t MOST = 0;  // bytes that a thread keeps
#else
constexpr int64_t MOST = 1 << 20;
#endif

// Sizes are powers of two, so that what was given back fits the next list.
constexpr int LEAST = 9, LARGEST = 20;  // exponents

struct Free {
  Free* next;
};

struct Kept {
  Free* first[LARGEST + 1] = {};
  int64_t bytes = 0;
  ~Kept() {
    for (Free* memory : first)
      for (Free* next; memory; memory = next) next = memory->next, std::free(memory);
  }
};

thread_local Kept kept;

int exponent_of(int64_t bytes) { return bytes <= 1 << LEAST ? LEAST : 64 - __builtin_clzll(bytes - 1); }

}  // namespace

void* take_memory(int64_t& bytes) {
  if (bytes <= MOST) {
    int exponent = exponent_of(bytes);
    bytes = int64_t{1} << exponent;
    if (Free*& first = kept.first[exponent]) {
      Free* memory = first;
      first = memory->next, kept.bytes -= bytes;
      return memory;
    }
  }
  return std::aligned_alloc(LINE, size_t(ceil_div(bytes, LINE) * LINE));
}

void give_memory(void* memory, int64_t bytes) {
  if (kept.bytes + bytes > MOST) return std::free(memory);
  Free*& first = kept.first[exponent_of(bytes)];
  first = new (memory) Free{first}, kept.bytes += bytes;
}

}  // namespace gconv
