// The sizes that a kernel works with: its register tile, what a thread works on at once, and its memory.

#pragma once

#include "plan.h"

namespace gconv {

// A call, as one kernel with one length of vectors would see it.
struct Call {
  Role role;
  Type type;
  const Problem& p;
  int64_t sources, results, taps, L, registers, element, number;
  int64_t steps;  // numbers or pairs of a group's sources
  double cache;   // bytes of the last one
};

// Fills in the sizes of a plan whose kernel, vectors and threads are known.
void size(const Call& call, Plan& plan);

}  // namespace gconv
