// What a thread keeps of the memory that it gives back: counted at the C library's door, so without
// sanitizers.

#include "memory.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

std::atomic<int64_t> requests{0}, in_use{0};  // pieces that the library gave, and those that it has not back

// The linker makes these of this program's calls.
extern "C" {
void* __real_aligned_alloc(size_t alignment, size_t size);
void __real_free(void* memory);
void* __wrap_aligned_alloc(size_t alignment, size_t size) {
  ++requests, ++in_use;
  return __real_aligned_alloc(alignment, size);
}
void __wrap_free(void* memory) {
  in_use -= memory != nullptr;
  __real_free(memory);
}
}

static int failures = 0;
static void check(bool is_right, const char* what) {
  if (!is_right) ++failures, std::printf("memory: wrong: %s\n", what);
}

struct Piece {
  unsigned char* memory;
  int64_t bytes, asked;
  unsigned char mark;
  Piece(int64_t asked, unsigned char mark) : bytes(asked), asked(asked), mark(mark) {
    memory = static_cast<unsigned char*>(gconv::take_memory(bytes));
    check(reinterpret_cast<intptr_t>(memory) % 64 == 0, "a piece begins within a line");
    std::memset(memory, mark, bytes);
  }
  bool is_whole() const {
    for (int64_t i = 0; i < bytes; ++i)
      if (memory[i] != mark) return false;
    return bytes >= asked;
  }
  void give() const { gconv::give_memory(memory, bytes); }
};

// Pieces of all sizes, given back in any order: none overlaps another, and what is kept stays below a
// megabyte.
static void random_pieces(unsigned seed) {
  std::mt19937 random(seed);
  std::vector<Piece> pieces;
  for (int i = 0; i < 4000; ++i) {
    if (pieces.size() < 40 && random() % 2) {
      int64_t limit = int64_t{1} << (1 + random() % 22);
      pieces.emplace_back(1 + random() % limit, random());
    } else if (!pieces.empty()) {
      std::swap(pieces[random() % pieces.size()], pieces.back());
      check(pieces.back().is_whole(), "a piece was written by another's owner, or is too small");
      pieces.back().give();
      pieces.pop_back();
    }
  }
  for (const Piece& piece : pieces) piece.give();
}

int main() {
  std::thread([] {
    Piece(3000, 1).give();
    int64_t before = requests;
    for (int i = 0; i < 100; ++i) {
      Piece first(2100 + i, 2), second(100000, 3);  // at the most, the second is new the first time
      first.give(), second.give();
    }
    check(requests - before == 1, "what was given back is taken again");

    std::vector<Piece> many;
    for (int i = 0; i < 64; ++i) many.emplace_back(1 << 16, 4);
    int64_t all = in_use;
    for (const Piece& piece : many) piece.give();
    check(all - in_use >= 64 - 16, "no more than a megabyte is kept");
    before = in_use;
    Piece(1 << 21, 5).give();
    check(in_use == before, "a piece larger than that is given back at once");
  }).join();
  check(in_use == 0, "a thread that ends keeps nothing");

  std::vector<std::thread> threads;
  for (unsigned i = 0; i < 4; ++i) threads.emplace_back(random_pieces, i);
  for (std::thread& thread : threads) thread.join();
  check(in_use == 0, "nor do several");

  int64_t before = in_use;
  Piece* passed = nullptr;
  std::thread([&] { passed = new Piece(5000, 6); }).join();
  check(passed->is_whole(), "memory outlives the thread that took it");
  passed->give();
  delete passed;
  check(in_use == before + 1, "and is kept by the thread that gave it back");
  if (!failures) std::printf("memory: what threads keep is right\n");
  return failures != 0;
}
