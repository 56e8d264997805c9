// Parallel loops on XLA's own thread pool, in two words:
//
//   share   the part of the units that a thread begins with
//   range   the units that a thread takes from a share at once
//
// A loop has one share for each thread. A thread takes ranges from its own share until that is empty, and
// then from the shares of other threads. Six things shape the code.
//
// No deadlock. The pool can only schedule tasks. A task may run at once inside Schedule, or late, or after
// the loop. So the caller never waits for a task to start. It works until no units are left, and then waits
// for the ranges that other threads hold. A task that starts late finds no units left and returns. So there
// is no deadlock in a busy pool, in a pool of one thread, or in a loop inside a task of the same pool.
//
// Caches. The shares are the same in every call, so memory is read in the same order each time. Otherwise
// operands that just fill the last cache would be read from memory again and again. With two threads, what a
// thread left in its own caches is also what it needs next. Ranges start long, so that neighbouring units
// stay in one cache.
//
// Balance. Ranges shrink with the number of units that are left in all shares. So threads of equal speed
// finish within the time of a shortest range (the grain), even if a thread starts late or never.
//
// Cost. Taking a range costs the same for any number of threads: five to eight atomic operations with up to
// 64 threads, and one more at most for each further 64 (counted by tests/native/parallel.cc). The number of
// units left in all shares is one counter, and one word says which of 64 shares have units left. All threads
// write to the counter, but each of them only once for a range, which takes microseconds.
//
// Start. Scheduling a task and waking its thread takes microseconds too. The caller therefore schedules the
// tasks of four threads only. Each of these schedules the tasks of four more, so 64 threads start in three
// rounds.
//
// Memory. If there is no memory for the job, the caller does the whole loop. If there is none for a task, the
// other threads do its share. If a body finds no memory, the ranges that follow are left out.

#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <vector>
#ifdef __linux__
#include <sched.h>
#endif

#include "problem.h"

namespace gconv {
namespace {

// --- processors --------------------------------------------------------------------------------------------

// Linux keeps a woken thread on the processor of the thread that woke it if all other processors seem busy.
// In a virtual machine, halted processors seem busy too (available_idle_cpu in kernel/sched). Such a task
// would start when the loop is over. So a thread that has woken others lets them run first if there is much
// work (let_others_run), and a task that starts on the processor of its waker moves to another one (leave).
#ifdef __linux__
inline int processor() { return sched_getcpu(); }

// Moves this thread to another processor if it runs on one of these two. Afterwards it may run everywhere
// again, but not on processors that the system adds later.
inline void leave(int one, int other) {
  cpu_set_t all, rest;
  int here = sched_getcpu();
  if ((here != one && here != other) || sched_getaffinity(0, sizeof all, &all)) return;
  rest = all;
  CPU_CLR(one, &rest);
  if (CPU_COUNT(&rest) > 1) CPU_CLR(other, &rest);
  if (CPU_COUNT(&rest) && !sched_setaffinity(0, sizeof rest, &rest)) sched_setaffinity(0, sizeof all, &all);
}

inline void let_others_run() { sched_yield(); }
#else
inline int processor() { return -1; }
inline void leave(int, int) {}
inline void let_others_run() {}
#endif

// --- memory from the beginning of a line of the cache on ---------------------------------------------------

// Cuts it out of what malloc gives, which has pieces of up to a kilobyte at hand for each thread. `new` of an
// aligned type takes a lock and cuts them out of a larger piece each time.
template <class T>
struct AtLine {
  using value_type = T;
  AtLine() = default;
  template <class U>
  AtLine(const AtLine<U>&) {}
  T* allocate(size_t n) {
    void* memory = std::malloc(n * sizeof(T) + LINE + sizeof(void*));
    if (!memory) throw std::bad_alloc();
    void** line = reinterpret_cast<void**>(line_from(static_cast<void**>(memory) + 1));
    line[-1] = memory;
    return reinterpret_cast<T*>(line);
  }
  void deallocate(T* line, size_t) { std::free(reinterpret_cast<void**>(line)[-1]); }
};

// --- shares and ranges -------------------------------------------------------------------------------------

struct Range {
  int64_t first = 0, last = 0;  // the units [first, last)
  int64_t size() const { return last - first; }
};

// The units of a loop that no thread has taken yet. Tests put an `Atomic` of their own, which counts.
template <template <class> class Atomic = std::atomic>
struct Shares {
  static constexpr auto RELAXED = std::memory_order_relaxed;  // they hand over no other memory
  static constexpr int64_t WORDS = LINE / 8;                  // of `open`, so that it is one line
  static constexpr int64_t MOST = 64 * WORDS;                 // threads

  struct alignas(LINE) Share {
    Atomic<int64_t> next;  // the first unit that is left
    int64_t end;
  };

  const int64_t units, grain, threads;
  std::vector<Share, AtLine<Share>> all;
  alignas(LINE) Atomic<int64_t> taken{0};      // units, from all shares together
  alignas(LINE) Atomic<uint64_t> open[WORDS];  // a bit for each share: whether it has units left

  Shares(int64_t units, int64_t grain, int64_t threads)
      : units(units), grain(grain), threads(threads), all(threads) {
    for (auto& word : open) word.store(0, RELAXED);
    for (int64_t i = 0; i < threads; ++i) {
      all[i].next.store(units * i / threads, RELAXED), all[i].end = units * (i + 1) / threads;
      open[i / 64].fetch_or(uint64_t{1} << i % 64, RELAXED);
    }
  }

  int64_t left() const { return units - taken.load(RELAXED); }

  // Takes a range from share `at`. If that is empty, `at` becomes the next share that is not. Returns false
  // if all shares are empty.
  bool take(int64_t& at, Range& range) {
    int64_t left = this->left();
    for (; left > 0 && at >= 0; at = after(at)) {
      Share& share = all[at];
      int64_t first = share.next.load(RELAXED);
      while (first < share.end) {
        int64_t rest = share.end - first, half = std::min(rest, left / threads) / 2;
        int64_t size = std::min(rest, std::max(half, grain));
        if (!share.next.compare_exchange_weak(first, first + size, RELAXED)) continue;
        taken.fetch_add(size, RELAXED);
        if (size == rest) close(at);
        range = {first, first + size};
        return true;
      }
    }
    return false;
  }

  // Notes that share `at` is empty. Returns its word of `open`.
  uint64_t close(int64_t at) {
    uint64_t bit = uint64_t{1} << at % 64;
    return open[at / 64].fetch_and(~bit, RELAXED) & ~bit;
  }

  // The next open share after share `at`, which is empty; the first share follows the last. -1: none is open.
  int64_t after(int64_t at) {
    int64_t words = (threads + 63) / 64, own = at / 64;
    uint64_t bit = uint64_t{1} << at % 64, seen = open[own].load(RELAXED);
    if (seen & bit) seen = close(at);  // the thread that took its last units has not done so yet
    if (uint64_t above = seen & -bit) return own * 64 + __builtin_ctzll(above);
    for (int64_t word = own + 1; word < own + words; ++word)
      if (uint64_t other = open[word % words].load(RELAXED))
        return word % words * 64 + __builtin_ctzll(other);
    return seen ? own * 64 + __builtin_ctzll(seen) : -1;
  }
};

// --- jobs: one loop, and who has done how much of it -------------------------------------------------------

template <template <class> class Atomic = std::atomic>
struct Job {
  Shares<Atomic> shares;
  const Parallel::Body body;
  void* const argument;  // belongs to the caller: used only by a thread that holds a range
  const int caller = processor();
  Atomic<bool> failed{false};
  alignas(LINE) Atomic<int64_t> done{0};  // units, by the threads that have finished
  std::mutex mutex;
  std::condition_variable finished;

  Job(int64_t units, int64_t grain, int64_t threads, Parallel::Body body, void* argument)
      : shares(units, grain, threads), body(body), argument(argument) {}

  // Does the range that the thread holds already, if any. Then takes and does ranges until no units are left,
  // from `share` and from the shares after it.
  void work(int64_t share, Range range = {}) {
    int64_t units = 0;
    do {
      if (range.size()) run(range);
      units += range.size();
    } while (shares.take(share, range));
    finish(units);
  }

  void run(Range range) {
    if (failed.load(std::memory_order_relaxed) || body(argument, range.first, range.last)) return;
    failed.store(true, std::memory_order_relaxed);  // before finish(), so the caller sees it when all is done
  }

  // A thread that has found no units left tells here how many it has done.
  void finish(int64_t units) {
    if (!units || done.fetch_add(units, std::memory_order_acq_rel) + units < shares.units) return;
    std::lock_guard<std::mutex> lock(mutex);
    finished.notify_one();
  }

  bool is_done() const { return done.load(std::memory_order_acquire) == shares.units; }

  // The other threads are at their last ranges, which are short: spinning takes less time than to be woken.
  void wait() {
    using Clock = std::chrono::steady_clock;
    for (auto end = Clock::now() + std::chrono::microseconds(50); Clock::now() < end;)
      for (int i = 0; i < 32; ++i) {
        if (is_done()) return;
        pause();
      }
    std::unique_lock<std::mutex> lock(mutex);
    finished.wait(lock, [&] { return is_done(); });
  }

  static void pause() {
#ifdef __x86_64__
    __builtin_ia32_pause();
#endif
  }
};

// --- the two ways to run a loop ----------------------------------------------------------------------------

inline bool in_the_caller(const Parallel&, int64_t units, int64_t, Parallel::Body body, void* argument) {
  return units < 1 || body(argument, 0, units);
}

// Pool has Schedule(callable), which does not block and which any thread may call.
template <class Pool>
struct OnPool : Parallel {
  static constexpr int64_t CALLS = 4;  // of Schedule, by one thread
  using JobPointer = std::shared_ptr<Job<>>;

  Pool* pool;  // belongs to the caller: used only by the caller and by a thread that holds a range
  bool much;   // whether there is so much work that threads let those that they wake run first
  OnPool(Pool* pool, int64_t threads, bool much) : Parallel{run_on_pool, threads}, pool(pool), much(much) {}

  static bool run_on_pool(const Parallel& self, int64_t units, int64_t grain, Body body, void* argument) {
    int64_t threads = std::min({units / grain, self.threads, Shares<>::MOST});
    if (threads < 2) return in_the_caller(self, units, grain, body, argument);
    JobPointer job;
    try {
      job = std::allocate_shared<Job<>>(AtLine<Job<>>(), units, grain, threads, body, argument);
    } catch (const std::bad_alloc&) {
      return in_the_caller(self, units, grain, body, argument);
    }
    static_cast<const OnPool&>(self).wake(job, 0);
    job->work(0);
    job->wait();
    return !job->failed.load(std::memory_order_relaxed);
  }

  // Schedules the tasks that `thread` starts. Thread 0 is the caller.
  void wake(const JobPointer& job, int64_t thread) const {
    int64_t first = CALLS * thread + 1, end = std::min(first + CALLS, job->shares.threads);
    if (first >= end) return;
    int waker = processor();
    try {
      for (int64_t i = first; i < end && job->shares.left() > 0; ++i)
        pool->Schedule([on = *this, job, i, waker] { on.help(job, i, waker); });
    } catch (...) {
      // No memory for a task. Other threads do its share, and the shares of the tasks that it would schedule.
    }
    if (much) let_others_run();
  }

  // The task of `thread`.
  void help(const JobPointer& job, int64_t thread, int waker) const {
    if (job->shares.left() <= 0) return;
    leave(job->caller, waker);
    int64_t share = thread;
    Range range;
    if (!job->shares.take(share, range)) return;
    wake(job, thread);  // the pool still exists: the caller waits for the range that this thread holds
    job->work(share, range);
  }
};

}  // namespace
}  // namespace gconv
