// A kernel that is the same in every call of a compiled program, as the weights of a network in inference:
// the first call packs it, and the others find it packed.

#pragma once

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>

#include "problem.h"

namespace gconv {

struct Free {
  void operator()(char* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<char, Free>;

inline Memory whole_lines_of_memory(int64_t bytes) {
  Memory memory(static_cast<char*>(std::aligned_alloc(LINE, size_t(ceil_div(bytes, LINE) * LINE))));
  if (!memory) throw std::bad_alloc();
  return memory;
}

// What a program keeps for one of its calls.
struct Frozen {
  std::mutex mutex;
  std::atomic<bool> is_packed{false};
  Memory packed;
  uint64_t seen = 0;  // a sample of the kernel
};

// One call's part in it. The program says that its kernel is always the same. What it says is believed of
// kernels whose samples agree; one that differs is packed by its own call.
class FrozenCall {
  Frozen* frozen = nullptr;
  std::unique_lock<std::mutex> lock;  // held by the call that packs
  Memory own;

 public:
  // Where the packed kernel of `bytes` is, or is to be: a kernel `w` of so many bytes.
  FrozenCall(Frozen* of, const void* w, size_t size, int64_t bytes, Scratch& scratch) {
    if (!of || !bytes) return;
    uint64_t sample = sample_of(static_cast<const char*>(w), size);
    if (!of->is_packed.load(std::memory_order_acquire)) {
      lock = std::unique_lock<std::mutex>(of->mutex);
      if (!of->is_packed.load(std::memory_order_relaxed)) {
        frozen = of;
        if (!of->packed) of->packed = whole_lines_of_memory(bytes);
        of->seen = sample, scratch.packed = of->packed.get();
        return;
      }
      lock.unlock();
    }
    scratch.is_packed = of->seen == sample;
    if (!scratch.is_packed) own = whole_lines_of_memory(bytes);
    scratch.packed = scratch.is_packed ? of->packed.get() : own.get();
  }

  // Whether this call packs for all that follow, which wait for it: it must not wait for their threads.
  bool is_first() const { return frozen; }
  void done() {
    if (frozen) frozen->is_packed.store(true, std::memory_order_release);
  }

 private:
  static uint64_t sample_of(const char* bytes, size_t size) {
    constexpr size_t WORDS = 8;
    uint64_t hash = size;
    for (size_t i = 0; i < WORDS; ++i) {
      uint64_t word = 0;
      size_t length = size < sizeof word ? size : sizeof word;
      std::memcpy(&word, bytes + (size - length) * i / (WORDS - 1), length);
      hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
    }
    return hash;
  }
};

}  // namespace gconv
