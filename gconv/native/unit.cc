// The kernels of one length of vectors of one instruction set, for the types whose sums are formed in one
// type of numbers: COMPUTED is float or double. Or, where it is Pair, those that take pairs of bfloat16.
// Compiled once for each: UNIT is its name, SET and VECTOR_BYTES are its vectors.

#include "unit.h"

#include "depthwise/gather.h"
#include "depthwise/reduce.h"
#include "gather/matrix.h"
#include "gather/narrow.h"
#include "gather/rows.h"
#include "gather/wide.h"
#include "gather/winograd.h"
#include "reduce/narrow.h"
#include "reduce/wide.h"

namespace gconv {
namespace {

using E = COMPUTED;
using A = Wide<E>;

// Depthwise convolution by strands S.
template <class S, class F>
void with_strands(const Plan& plan, Role role, const Problem& p, const Finish<A>& finish, const F& with) {
  role == Role::w ? with(ReduceDepthwise<S>(plan, p)) : with(GatherDepthwise<S>(plan, role, p, finish));
}

bool run(const Plan& plan, Type type, Role role, const Problem& p, const void* first, const void* second,
         void* result, const Scratch& scratch, const Epilogue& epilogue, const Parallel& parallel) try {
  Finish<A> finish(epilogue, type, p, result);
  auto with = [&](const auto& kernel) {
    kernel.run(first, second, result, scratch, parallel);
    return true;
  };
  if constexpr (TERMS<E> == 1) {
    if (plan.kernel == Kernel::depthwise) {  // compiled for each type of elements
      with_element<A>(type, [&](auto element) {
        using T = decltype(element);
        // With 32 registers no plan takes bfloat16 by single vectors, and nothing is compiled for it.
        if constexpr (std::is_same_v<T, Bf16>)
          if (REGISTERS == 32 || plan.strand == EvenOddStrand::LANES)
            return with_strands<EvenOddStrand>(plan, role, p, finish, with);
        if constexpr (!std::is_same_v<T, Bf16> || REGISTERS == 16)
          with_strands<Strand<T>>(plan, role, p, finish, with);
      });
      return true;
    }
    if (plan.kernel == Kernel::narrow && role == Role::w) return with(ReduceNarrow<A>(plan, type, p));
    if (plan.kernel == Kernel::winograd) return with(GatherWinograd<A>(plan, type, role, p, finish));
  }
  if (role == Role::w) return with(ReduceWide<E>(plan, type, p));
  switch (plan.kernel) {
    case Kernel::narrow: return with(GatherNarrow<E>(plan, type, role, p, finish));
    case Kernel::matrix: return with(GatherMatrix<E>(plan, type, role, p, finish, epilogue.gate));
    case Kernel::wide: return with(GatherWide<E>(plan, type, role, p, finish));
    default: return with(GatherRows<E>(plan, type, role, p, finish));
  }
} catch (OutOfMemory) {
  return false;
}

}  // namespace

extern const Unit UNIT;
const Unit UNIT{{TEXT(SET), VECTOR_BYTES, REGISTERS}, run};

}  // namespace gconv
