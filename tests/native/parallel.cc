// The loops of gconv/native/parallel.h: simulated threads, then real ones.
//
// The simulation runs in one thread and gives the same numbers each time. A simulated thread takes a range,
// is busy for the time that its units take, and takes the next range. The thread whose turn is earliest goes
// first. The simulation counts atomic operations and checks four things: a range costs as many of them
// with 64 threads as with 2, threads finish together, ranges are few, and each unit is done once.
//
// The real threads show what a simulation cannot: tasks wake each other, nothing deadlocks, nothing races
// (`make sanitize` runs this under ThreadSanitizer too), and a loop goes on where a task or a body finds no
// memory.

#include "parallel.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <functional>
#include <future>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <queue>
#include <string>
#include <thread>
#include <utility>
#include <vector>

using namespace gconv;

namespace {

int failures = 0;

void check(bool holds, const std::string& what) {
  if (holds) return;
  std::printf("FAILED: %s\n", what.c_str());
  ++failures;
}

// --- simulated threads -------------------------------------------------------------------------------------

int64_t operations = 0;  // on atomic numbers

template <class T>
struct Counted {
  using Order = std::memory_order;
  T value;
  Counted(T value = 0) : value(value) {}
  T load(Order) const { return ++operations, value; }
  void store(T to, Order) { ++operations, value = to; }
  T fetch_add(T more, Order) { return ++operations, std::exchange(value, value + more); }
  T fetch_and(T bits, Order) { return ++operations, std::exchange(value, value & bits); }
  T fetch_or(T bits, Order) { return ++operations, std::exchange(value, value | bits); }
  bool compare_exchange_weak(T& expected, T to, Order) {
    ++operations;
    if (value != expected) return expected = value, false;
    return value = to, true;
  }
};

constexpr int64_t NEVER = std::numeric_limits<int64_t>::max();

struct Scenario {
  const char* name;
  // When a thread starts, in a loop that takes `length` if all start at once.
  int64_t (*start)(int64_t thread, int64_t threads, int64_t length);
  int64_t time;  // that a unit takes one of the threads; it takes the others 1
};

int64_t at_once(int64_t, int64_t, int64_t) { return 0; }
int64_t in_rounds(int64_t i, int64_t, int64_t length) {  // to be woken takes a fiftieth of the loop
  int64_t rounds = 0;
  for (; i > 0; i = (i - 1) / OnPool<int>::CALLS) ++rounds;
  return rounds * length / 50;
}
int64_t one_at_half_time(int64_t i, int64_t n, int64_t length) { return i && i == n / 2 ? length / 2 : 0; }
int64_t one_near_the_end(int64_t i, int64_t n, int64_t length) {
  return i && i == n - 1 ? length - length / 50 : 0;
}
int64_t one_never(int64_t i, int64_t n, int64_t) { return i && i == n / 2 ? NEVER : 0; }
int64_t only_the_caller(int64_t i, int64_t, int64_t) { return i ? NEVER : 0; }

const Scenario SCENARIOS[] = {
    {"all at once", at_once, 1},
    {"in rounds", in_rounds, 1},
    {"one at half-time", one_at_half_time, 1},
    {"one near the end", one_near_the_end, 1},
    {"one never", one_never, 1},
    {"only the caller", only_the_caller, 1},
    {"one at half speed", at_once, 2},
};

struct Result {
  int64_t ranges = 0, spread = 0;  // spread: of the times at which the threads end
  int64_t most = 0;                // operations for one range
  double per_range = 0;            // operations in all, by the number of ranges
  double own = 0;                  // the part of all units that the thread did whose share they are from
};

Result simulate(const Scenario& scenario, int64_t threads, int64_t units, int64_t grain) {
  std::vector<int> done(units);  // how often
  auto body = [](void* done, int64_t first, int64_t last) {
    while (first < last) ++(*static_cast<std::vector<int>*>(done))[first++];
    return true;
  };
  Job<Counted> job(units, grain, threads, body, &done);

  struct Thread {
    int64_t share, units;
  };
  std::vector<Thread> all;
  using Turn = std::pair<int64_t, int64_t>;  // time, thread
  std::priority_queue<Turn, std::vector<Turn>, std::greater<Turn>> turns;
  for (int64_t i = 0; i < threads; ++i) {
    all.push_back({i, 0});
    int64_t start = scenario.start(i, threads, units / threads);
    if (start != NEVER) turns.push({start, i});
  }

  Result result;
  int64_t first_end = NEVER, last_end = 0, own = 0;
  operations = 0;
  while (!turns.empty()) {  // each turn is one of the loop in Job::work
    auto [now, i] = turns.top();
    turns.pop();
    Thread& thread = all[i];
    Range range;
    int64_t before = operations;
    if (job.shares.take(thread.share, range)) {
      job.run(range);
      thread.units += range.size(), ++result.ranges;
      if (units * i / threads <= range.first && range.last <= units * (i + 1) / threads) own += range.size();
      turns.push({now + range.size() * (i == threads / 2 ? scenario.time : 1), i});
    } else {
      job.finish(thread.units);
      if (thread.units) first_end = std::min(first_end, now), last_end = std::max(last_end, now);
    }
    result.most = std::max(result.most, operations - before);
  }
  result.per_range = double(operations) / double(result.ranges);
  result.spread = last_end - first_end, result.own = double(own) / double(units);

  std::string where = std::string(scenario.name) + ", " + std::to_string(threads) + " threads, " +
                      std::to_string(units) + " units, grain " + std::to_string(grain);
  check(job.is_done(), where + ": the caller would wait for ever");
  check(std::all_of(done.begin(), done.end(), [](int times) { return times == 1; }),
        where + ": a unit was left out or done twice");
  check(result.most <= 8 + (threads - 1) / 64, where + ": a range costs too many operations");
  check(result.spread <= grain * scenario.time, where + ": the threads do not finish together");
  // Ranges are half of what is left of a share, log2(n / grain) of them, or what is left of all by twice the
  // number of threads, 2 * ln(n / grain) = 1.4 * log2(n / grain) of them a thread; then the last ones.
  double halvings = std::log2(double(units) / double(threads * grain) + 2);
  check(double(result.ranges) <= double(threads) * (2.4 * halvings + 3), where + ": too many ranges");
  return result;
}

void simulate_all() {
  std::printf(
      "Loops of 1000 units a thread. ranges: for each thread; mean, most: atomic operations for a range;\n"
      "ends: from the first thread's end to the last one's, in the time of a grain; own: units done by the\n"
      "thread whose share they are from.\n"
      "\nthreads start      threads grain   ranges     mean  most  ends  own, %%\n");
  for (int64_t grain : {1, 30})
    for (const Scenario& scenario : SCENARIOS) {
      double with_two = 0;
      for (int64_t threads : {1, 2, 16, 64, 512}) {
        Result r = simulate(scenario, threads, 1000 * threads + 37, grain);
        std::printf("%-17s %8ld %5ld %8.1f %8.2f %5ld %5.2f %7.1f\n", scenario.name, long(threads),
                    long(grain), double(r.ranges) / double(threads), r.per_range, long(r.most),
                    double(r.spread) / double(grain), 100 * r.own);
        std::string where = std::string(scenario.name) + ", " + std::to_string(threads) + " threads: ";
        if (threads == 2) with_two = r.per_range;
        if (threads == 16 || threads == 64)
          check(r.per_range <= with_two + 1, where + "a range costs more than with two threads");
        if (scenario.start == at_once && scenario.time == 1)
          check(r.own > 0.99, where + "threads leave their shares");
      }
    }
  for (int64_t threads : {1, 2, 3, 16, 64, 65, 130})  // few units, down to one for each thread
    for (int64_t units = threads; units < 4 * threads + 3; ++units)
      for (int64_t grain = 1; grain <= units / threads; ++grain)
        for (const Scenario& scenario : SCENARIOS) simulate(scenario, threads, units, grain);
}

// --- real threads ------------------------------------------------------------------------------------------

struct ThreadEach {  // a pool whose tasks are threads of their own
  std::mutex mutex;
  std::vector<std::thread> all;
  std::map<std::thread::id, int64_t> calls;
  int64_t memory = NEVER;  // for so many tasks
  template <class F>
  void Schedule(F&& f) {
    std::lock_guard<std::mutex> lock(mutex);
    ++calls[std::this_thread::get_id()];
    if (int64_t(all.size()) >= memory) throw std::bad_alloc();
    all.emplace_back(std::forward<F>(f));
  }
  ~ThreadEach() {
    for (auto& thread : all) thread.join();
  }
};

struct Workers {  // a pool with a number of threads
  std::mutex mutex;
  std::condition_variable changed;
  std::queue<std::function<void()>> tasks;
  std::vector<std::thread> all;
  explicit Workers(int64_t threads) {
    for (int64_t i = 0; i < threads; ++i) all.emplace_back([this] { work(); });
  }
  ~Workers() {
    Schedule({});
    for (auto& thread : all) thread.join();
  }
  void Schedule(std::function<void()> task) {
    {
      std::lock_guard<std::mutex> lock(mutex);
      tasks.push(std::move(task));
    }
    changed.notify_one();
  }
  void work() {
    for (std::unique_lock<std::mutex> lock(mutex);; lock.lock()) {
      changed.wait(lock, [&] { return !tasks.empty(); });
      auto task = std::move(tasks.front());
      if (task) tasks.pop();  // an empty task is the last one: it stays for the other threads
      lock.unlock();
      changed.notify_one();
      if (!task) return;
      task();
    }
  }
};

struct AtOnce {  // a pool whose tasks run inside Schedule
  void Schedule(const std::function<void()>& task) { task(); }
};

struct Later {  // a pool whose tasks run when they are asked to
  std::vector<std::function<void()>> tasks;
  void Schedule(std::function<void()> task) { tasks.push_back(std::move(task)); }
};

// A pool that is gone when the loop is over, as XLA's handle is.
template <class Pool>
struct Handle {
  Pool* pool;
  void Schedule(std::function<void()> task) { pool->Schedule(std::move(task)); }
};

// Runs a loop whose body is a lambda of a range.
template <class Pool, class F>
bool loop(Pool& pool, int64_t threads, int64_t units, int64_t grain, const F& body) {
  auto run = [](void* argument, int64_t first, int64_t last) {
    return (*static_cast<const F*>(argument))(first, last);
  };
  std::unique_ptr<Handle<Pool>> handle(new Handle<Pool>{&pool});
  OnPool<Handle<Pool>> parallel(handle.get(), threads, units % 2);
  return parallel.run(parallel, units, grain, run, const_cast<F*>(&body));
}

// Whether a loop does each unit once.
template <class Pool>
bool once(Pool& pool, int64_t threads, int64_t units, int64_t grain) {
  std::vector<int> done(units);
  bool good = loop(pool, threads, units, grain, [&](int64_t first, int64_t last) {
    while (first < last) ++done[first++];
    return true;
  });
  return good && std::all_of(done.begin(), done.end(), [](int times) { return times == 1; });
}

// Each thread waits inside its first range until all threads have started. So tasks are scheduled before
// their threads do anything else.
void all_start() {
  constexpr int64_t THREADS = 64;
  ThreadEach pool;
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::thread::id, int64_t> ranges;
  bool good = loop(pool, THREADS, 16 * THREADS, 1, [&](int64_t, int64_t) {
    std::unique_lock<std::mutex> lock(mutex);
    ++ranges[std::this_thread::get_id()];
    changed.notify_all();
    auto deadline = std::chrono::system_clock::now() + std::chrono::seconds(60);
    return changed.wait_until(lock, deadline, [&] { return int64_t(ranges.size()) == THREADS; });
  });
  int64_t most = 0, all = 0;
  for (auto [thread, calls] : pool.calls) most = std::max(most, calls), all += calls;
  std::printf("%ld of %ld threads started; %ld tasks were scheduled, at most %ld by one thread\n",
              long(ranges.size()), long(THREADS), long(all), long(most));
  check(good && all == THREADS - 1, "not all threads start");
  check(most <= 4, "a thread schedules too many tasks");
}

void nest(int64_t threads) {
  Workers pool(threads);
  auto nested = [&](int64_t first, int64_t last) {
    bool good = true;
    while (first++ < last) good = once(pool, 8, 100, 3) && good;
    return good;
  };
  std::string where = " with " + std::to_string(threads) + " threads in the pool";
  check(loop(pool, 8, 40, 1, nested), "a loop in a loop" + where);
  std::promise<bool> good;
  pool.Schedule([&] { good.set_value(loop(pool, 8, 40, 1, nested)); });
  check(good.get_future().get(), "a loop in a loop in a task" + where);
}

void run_all() {
  alarm(600);  // a deadlock ends here
  all_start();
  for (int64_t threads : {1, 2, 8}) nest(threads);
  Workers seven(7);
  for (int64_t i = 0; i < 3000; ++i)
    check(once(seven, 1 + i % 23, i % 211, 1 + i % 5), "many loops in a row");
  Later later;
  check(once(later, 64, 1000, 1), "a pool that is busy until the loop is over");
  for (size_t i = 0; i < later.tasks.size(); ++i) later.tasks[i]();  // what the loop used is gone
  check(later.tasks.size() <= 4, "tasks that start too late schedule others");
  AtOnce immediate;
  check(once(immediate, 64, 1000, 1), "a pool whose tasks run in the caller");
  for (int64_t tasks = 0; tasks < 8; ++tasks) {
    ThreadEach pool;
    pool.memory = tasks;
    check(once(pool, 8, 1000, 1), "memory for " + std::to_string(tasks) + " tasks");
  }
  int64_t bodies = 0;
  bool good = loop(immediate, 8, 1000, 1, [&](int64_t, int64_t) { return ++bodies < 3; });
  check(!good && bodies == 3, "a body finds no memory, and others follow or the loop does not say so");
  for (int64_t i = 0; i < 100; ++i)
    check(!loop(seven, 5, 100, 1, [&](int64_t first, int64_t last) { return i < first || i >= last; }),
          "a body finds no memory in any thread, and the loop does not say so");
}

}  // namespace

int main() {
  simulate_all();
  run_all();
  if (failures)
    std::printf("%d checks failed\n", failures);
  else
    std::printf("all checks hold\n");
  return failures > 0;
}
