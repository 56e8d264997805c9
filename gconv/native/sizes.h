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

// Roles y and x of narrow groups: whether sums of lanes are a tree where a lane is a channel. Eight filters
// need 32 registers, and more do not fit.
inline bool is_tree(int64_t sources, int64_t results, int64_t lanes, int64_t registers) {
  bool size = sources == 2 || sources == 4 || (sources == 8 && registers == 32);
  return size && results == sources && sources < lanes;
}

// Fills in the sizes of a plan whose kernel, vectors and threads are known.
void size(const Call& call, Plan& plan);

}  // namespace gconv
