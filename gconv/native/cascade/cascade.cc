#include "cascade/cascade.h"

#include <cstring>

#include "memory.h"
#include "parallel.h"

namespace gconv {
namespace {

// Bytes that lie between the links at once, mostly: they stay in a second cache of 512 KiB, with the weights
// beside them. More rows at once are fewer calls of kernels.
constexpr int64_t NEAR = 384 << 10;

int64_t row_of_source(const Link& link) { return link.p.in[2] * link.p.groups * link.p.channels; }
int64_t row_of_result(const Link& link) { return link.p.out[2] * link.p.groups * link.p.filters; }

// The rows of each link's source that so many rows of the last result need at most, and the bytes that this
// comes to.
int64_t needs(const Cascade& c, int64_t rows, int64_t (&of)[MOST_LINKS]) {
  int64_t bytes = 0;
  for (int i = c.links - 1; i >= 0; --i) {
    const Problem& p = c.link[i].p;
    rows = minimum(p.in[1], (rows - 1) * p.strides[1] + (p.window[1] - 1) * p.dilation[1] + 1);
    of[i] = rows;
    if (i > 0) bytes += rows * row_of_source(c.link[i]) * c.element;
  }
  return bytes;
}

// What one thread works with.
class Worker {
  const Cascade& c;
  const char* x;
  char* result;
  char* memory = nullptr;
  int64_t bytes = 0, image = -1;
  struct Rows {
    char* data;
    int64_t first = 0, last = 0;  // that are there
  } between[MOST_LINKS];          // the source of each link but the first
  char* rest = nullptr;

 public:
  Worker(const Cascade& c, const void* x, void* result)
      : c(c), x(static_cast<const char*>(x)), result(static_cast<char*>(result)) {
    int64_t rows[MOST_LINKS], scratch = 0;
    bytes = needs(c, c.rows, rows) + (MOST_LINKS + 2) * LINE;
    for (int i = 0; i < c.links; ++i) scratch = maximum(scratch, c.link[i].plan.scratch);
    bytes += scratch;
    memory = static_cast<char*>(take_memory(bytes));
    if (!memory) return;
    char* at = line_from(memory);
    for (int i = 1; i < c.links; ++i) {
      between[i].data = at;
      at = line_from(at + rows[i] * row_of_source(c.link[i]) * c.element);
    }
    rest = at;
  }
  Worker(const Worker&) = delete;
  ~Worker() {
    if (memory) give_memory(memory, bytes);
  }
  bool has_memory() const { return memory; }

  bool stripe(int64_t unit) {
    int64_t stripes = c.stripes(), first = unit % stripes * c.rows;
    const Link& last = c.link[c.links - 1];
    if (unit / stripes != image) {
      image = unit / stripes;
      for (Rows& rows : between) rows.first = rows.last = 0;
    }
    int64_t height = last.p.out[1];
    char* to = result + (image * height + first) * row_of_result(last) * c.element;
    return compute(c.links - 1, first, minimum(first + c.rows, height), to);
  }

 private:
  // Rows [from, to) of a link's result.
  bool compute(int i, int64_t from, int64_t to, char* into) {
    const Link& link = c.link[i];
    int64_t first, last, row = row_of_source(link) * c.element;
    Problem p = rows_of(link.p, from, to, first, last);
    const char* source = x + (image * link.p.in[1] + first) * row;
    if (i > 0) {
      if (!provide(i, first, last, row)) return false;
      source = between[i].data;
    }
    Epilogue epilogue = link.epilogue;
    if (epilogue.residual) epilogue.residual = static_cast<const char*>(epilogue.residual) + (into - result);
    Scratch scratch = link.memory;
    scratch.rest = rest;
    Parallel alone{in_the_caller, 1};
    return link.unit->run(link.plan, c.type, Role::y, p, source, link.w, into, scratch, epilogue, alone);
  }

  // Makes rows [first, last) of a link's source be there; those that are already move to the front.
  bool provide(int i, int64_t first, int64_t last, int64_t row) {
    Rows& rows = between[i];
    int64_t next = first;
    if (rows.first <= first && first < rows.last) {
      next = minimum(rows.last, last);
      std::memmove(rows.data, rows.data + (first - rows.first) * row, size_t((next - first) * row));
    }
    rows.first = first, rows.last = last;
    return next == last || compute(i - 1, next, last, rows.data + (next - first) * row);
  }
};

}  // namespace

void choose_rows(Cascade& c) {
  int64_t height = c.link[c.links - 1].p.out[1], rows[MOST_LINKS], most = 1;
  while (most < height && needs(c, most + 1, rows) <= NEAR) ++most;
  c.rows = ceil_div(height, ceil_div(height, most));  // stripes as even as can be
}

const char* plan_links(Cascade& c, PlanLink plan) {
  int64_t rows[MOST_LINKS], results = c.rows;
  needs(c, c.rows, rows);
  for (int i = c.links - 1; i >= 0; --i) {
    Problem p = c.link[i].p;
    p.batch = 1, p.out[1] = results, p.in[1] = results = rows[i];
    if (const char* why = plan(c.type, p, c.link[i].plan)) return why;
  }
  return nullptr;
}

Problem rows_of(const Problem& p, int64_t from, int64_t to, int64_t& first, int64_t& last) {
  Problem some = p;
  int64_t begin = from * p.strides[1] - p.low[1],
          end = (to - 1) * p.strides[1] + (p.window[1] - 1) * p.dilation[1] + 1 - p.low[1];
  first = minimum(maximum(begin, 0), p.in[1] - 1), last = maximum(minimum(end, p.in[1]), first + 1);
  some.frozen = false, some.batch = 1, some.in[1] = last - first, some.out[1] = to - from,
  some.low[1] = first - begin;
  return some;
}

bool run(const Cascade& c, const void* x, void* result, const Parallel& parallel) {
  struct Call {
    const Cascade& c;
    const void* x;
    void* result;
  } call{c, x, result};
  auto body = [](void* argument, int64_t first, int64_t last) {
    const Call& call = *static_cast<const Call*>(argument);
    Worker worker(call.c, call.x, call.result);
    bool done = worker.has_memory();
    for (int64_t unit = first; done && unit < last; ++unit) done = worker.stripe(unit);
    return done;
  };
  return parallel.run(parallel, c.images() * c.stripes(), 1, body, &call);
}

bool run_first(const Cascade& c, const void* x, void* result) {
  Worker worker(c, x, result);
  return worker.has_memory() && worker.stripe(0);
}

}  // namespace gconv
