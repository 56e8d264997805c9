// Convolutions that follow each other, row by row: a thread computes some rows of the last one's result, and
// of those before it the rows that these need. What lies between stays in its nearest caches, and never
// becomes an array: a network's expanded channels, of which each would be written to memory and read back.
//
//   stripe   the rows of the last result that are computed at once
//   link     one of the convolutions, role y, with what follows it

#pragma once

#include "plan.h"
#include "unit.h"

namespace gconv {

constexpr int MOST_LINKS = 3;

// One link. Its rows are those of axis 1; axis 0 has size 1.
struct Link {
  Problem p;
  Plan plan;
  const Unit* unit;
  const void* w;
  Epilogue epilogue;  // a residual only in the last link
  Scratch memory;     // its packed kernel
};

struct Cascade {
  Type type;
  int64_t element;  // bytes
  int links;
  Link link[MOST_LINKS];
  int64_t rows;  // of a stripe

  int64_t images() const { return link[0].p.batch; }
  int64_t stripes() const { return ceil_div(link[links - 1].p.out[1], rows); }
};

// Chooses the stripe.
void choose_rows(Cascade& cascade);

// Plans each link for the rows that a stripe needs of it. What is wrong with one, or nullptr.
using PlanLink = const char* (*)(Type type, const Problem& problem, Plan& plan);
const char* plan_links(Cascade& cascade, PlanLink plan);

// So many rows of a link's result, as a problem of its own; `first` and `last` become the rows of its source
// that it reads.
Problem rows_of(const Problem& p, int64_t from, int64_t to, int64_t& first, int64_t& last);

// Computes the result of x. False where there is no memory.
bool run(const Cascade& cascade, const void* x, void* result, const Parallel& parallel);

// The same of one stripe alone, which packs the kernels that are not.
bool run_first(const Cascade& cascade, const void* x, void* result);

}  // namespace gconv
