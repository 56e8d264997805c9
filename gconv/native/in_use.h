// What is in use on this processor: the instruction set, its kernels, and the last plans.

#pragma once

#include <string>

#include "unit.h"

namespace gconv {

// The kernels of one instruction set: for each length of its vectors, the longest first, the units of all
// types.
struct Set {
  const char* name;
  bool here;   // whether this processor has it
  bool gains;  // whether it is taken without being named
  const Unit* units[2][4];
  const Unit* pairs[2];  // those that take pairs of bfloat16, or nullptr
};

// The set in use: the first that this processor has and that gains, or the one that GCONV_NATIVE_ISA names;
// none if it has not got it.
struct InUse {
  const Set* set = nullptr;
  Processor processor{};
  std::string forced;  // the kernel that GCONV_NATIVE_KERNEL names for every call that it can do

  InUse();
};

const InUse& in_use();

// Plans a call. An empty `forced` leaves it to GCONV_NATIVE_KERNEL, where that names a kernel that can do it.
// The result is a sentence where the forced one cannot run, else nullptr.
const char* plan_here(Role role, Type type, const Problem& p, int64_t threads, const char* forced,
                      Plan& plan);

}  // namespace gconv
