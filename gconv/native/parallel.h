// Parallel loops on XLA's own thread pool, which can only schedule tasks: they may run in the caller, late, or when the loop is
// long over. So the loop is a counter that the caller and the tasks take units from. The caller works until none is left and then
// waits for the units that others have begun, never for a task to start: a busy pool, a pool of one thread and a loop inside a
// task of the same pool cannot deadlock. A late task finds no unit and leaves.

#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>

#include "problem.h"

namespace gconv {

struct Job {
  const int64_t units;
  void (*const body)(void*, int64_t);
  void* const argument;  // the caller's: touched only by who holds a unit
  std::atomic<int64_t> next{0}, done{0};
  std::mutex mutex;
  std::condition_variable finished;

  Job(int64_t units, void (*body)(void*, int64_t), void* argument) : units(units), body(body), argument(argument) {}

  void work() {
    for (int64_t unit; (unit = next.fetch_add(1, std::memory_order_relaxed)) < units;) {
      body(argument, unit);
      if (done.fetch_add(1, std::memory_order_acq_rel) + 1 == units) {
        std::lock_guard<std::mutex> lock(mutex);
        finished.notify_one();
      }
    }
  }
  void wait() {
    for (int i = 0; i < 2000; ++i)  // a few microseconds: the others are usually at their last unit
      if (done.load(std::memory_order_acquire) == units) return;
    std::unique_lock<std::mutex> lock(mutex);
    finished.wait(lock, [&] { return done.load(std::memory_order_acquire) == units; });
  }
};

inline void in_the_caller(const Parallel&, int64_t units, void (*body)(void*, int64_t), void* argument) {
  for (int64_t unit = 0; unit < units; ++unit) body(argument, unit);
}

// Pool has Schedule(callable), which does not block.
template <class Pool>
struct OnPool : Parallel {
  Pool* pool;
  OnPool(Pool* pool, int64_t threads) : Parallel{run_on_pool, threads}, pool(pool) {}

  static void run_on_pool(const Parallel& self, int64_t units, void (*body)(void*, int64_t), void* argument) {
    int64_t helpers = (units < self.threads ? units : self.threads) - 1;
    if (helpers < 1) return in_the_caller(self, units, body, argument);
    auto job = std::make_shared<Job>(units, body, argument);
    for (int64_t i = 0; i < helpers; ++i) static_cast<const OnPool&>(self).pool->Schedule([job] { job->work(); });
    job->work();
    job->wait();
  }
};

}  // namespace gconv
