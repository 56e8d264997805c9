// Parallel loops on XLA's own thread pool, which can only schedule tasks: they may run in the caller, late, or when the loop is
// long over. So the loop is as many shares as threads, each with a counter that ranges are taken from: a thread takes those of its
// own share and then those of others. The caller works until none is left and then waits for the ranges that others have begun,
// never for a task to start: a busy pool, a pool of one thread and a loop inside a task of the same pool cannot deadlock. A late
// task finds nothing left and leaves.
//
// Where there is no memory for the job or for a task, the caller does the work alone, or with the tasks that there are. Where a body
// finds none, the ranges that follow are left out.
//
// The shares are the same in every call, so that memory is read in one order (operands that just fill the last cache would else
// be read from memory again and again) and, with two threads, what one left in its caches is what it needs next. The ranges start
// long, so that neighbouring units stay in one cache, and shrink with what is left of all shares, so that all threads finish
// together, also when one begins late or never.
//
// Linux lets a thread that is woken up wait on its waker's processor if it takes the others for busy, and in a virtual machine it
// takes halted ones for busy (available_idle_cpu in kernel/sched). A task that finds itself on the caller's processor moves to
// another one; and where there is much work the caller lets such tasks run first, which else begin when it is over.

#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#ifdef __linux__
#include <sched.h>
#endif

#include "problem.h"

namespace gconv {
namespace {

#ifdef __linux__
inline int processor() { return sched_getcpu(); }

// The thread may run everywhere again afterwards, but not on processors that the system adds later.
inline void leave(int one) {
  cpu_set_t all, others;
  if (sched_getcpu() != one || sched_getaffinity(0, sizeof all, &all)) return;
  others = all;
  CPU_CLR(one, &others);
  if (CPU_COUNT(&others) && !sched_setaffinity(0, sizeof others, &others)) sched_setaffinity(0, sizeof all, &all);
}

inline void let_others_run() { sched_yield(); }
#else
inline int processor() { return -1; }
inline void leave(int) {}
inline void let_others_run() {}
#endif

struct Job {
  struct alignas(64) Share {
    std::atomic<int64_t> next;
    int64_t end;
  };

  const int64_t units, grain, threads;
  const Parallel::Body body;
  void* const argument;  // the caller's: touched only by who holds a range
  const int caller = processor();
  const std::unique_ptr<Share[]> shares;
  std::atomic<int64_t> done{0};
  std::atomic<bool> failed{false};
  std::mutex mutex;
  std::condition_variable finished;

  Job(int64_t units, int64_t grain, int64_t threads, Parallel::Body body, void* argument)
      : units(units), grain(grain), threads(threads), body(body), argument(argument), shares(new Share[threads]) {
    for (int64_t i = 0; i < threads; ++i) shares[i].next = units * i / threads, shares[i].end = units * (i + 1) / threads;
  }

  void help(int64_t own) {
    if (left()) leave(caller);
    work(own);
  }

  int64_t left() const {
    int64_t units = 0;
    for (int64_t i = 0; i < threads; ++i) {
      int64_t next = shares[i].next.load(std::memory_order_relaxed);
      units += next < shares[i].end ? shares[i].end - next : 0;
    }
    return units;
  }

  void work(int64_t own) {
    for (int64_t i = own; i < own + threads; ++i) work_on(shares[i % threads]);
  }

  void work_on(Share& share) {
    int64_t first = share.next.load(std::memory_order_relaxed);
    while (first < share.end) {
      int64_t rest = share.end - first, all = left() / threads, part = (rest < all ? rest : all) / 2;
      int64_t size = part > grain ? part : grain < rest ? grain : rest;
      if (!share.next.compare_exchange_weak(first, first + size, std::memory_order_relaxed)) continue;
      if (!failed.load(std::memory_order_relaxed) && !body(argument, first, first + size))
        failed.store(true, std::memory_order_relaxed);  // the caller sees it with the last of `done`
      if (done.fetch_add(size, std::memory_order_acq_rel) + size == units) {
        std::lock_guard<std::mutex> lock(mutex);
        finished.notify_one();
      }
      first = share.next.load(std::memory_order_relaxed);
    }
  }

  // The others are at their last range, which is short: to sleep and be woken would take longer.
  void wait() {
    using Clock = std::chrono::steady_clock;
    for (auto end = Clock::now() + std::chrono::microseconds(50); Clock::now() < end;)
      for (int i = 0; i < 32; ++i) {
        if (done.load(std::memory_order_acquire) == units) return;
        pause();
      }
    std::unique_lock<std::mutex> lock(mutex);
    finished.wait(lock, [&] { return done.load(std::memory_order_acquire) == units; });
  }

  static void pause() {
#ifdef __x86_64__
    __builtin_ia32_pause();
#endif
  }
};

inline bool in_the_caller(const Parallel&, int64_t units, int64_t, Parallel::Body body, void* argument) {
  return units < 1 || body(argument, 0, units);
}

// Pool has Schedule(callable), which does not block.
template <class Pool>
struct OnPool : Parallel {
  Pool* pool;
  bool much;
  OnPool(Pool* pool, int64_t threads, bool much) : Parallel{run_on_pool, threads}, pool(pool), much(much) {}

  static bool run_on_pool(const Parallel& self, int64_t units, int64_t grain, Body body, void* argument) {
    int64_t ranges = units / grain, helpers = (ranges < self.threads ? ranges : self.threads) - 1;
    if (helpers < 1) return in_the_caller(self, units, grain, body, argument);
    auto& own = static_cast<const OnPool&>(self);
    std::shared_ptr<Job> job;
    try {
      job = std::make_shared<Job>(units, grain, helpers + 1, body, argument);
      for (int64_t i = 1; i <= helpers; ++i) own.pool->Schedule([job, i] { job->help(i); });
    } catch (...) {  // std::bad_alloc: those that have been told of the job do the shares of all
      if (!job) return in_the_caller(self, units, grain, body, argument);
    }
    if (own.much) let_others_run();
    job->work(0);
    job->wait();
    return !job->failed.load(std::memory_order_relaxed);
  }
};

}  // namespace
}  // namespace gconv
