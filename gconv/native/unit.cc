// The kernels of one length of vectors of one instruction set, for one type. Compiled once for each: UNIT is
// its name, SET and VECTOR_BYTES are its vectors, and ELEMENT is the type.

#include "unit.h"

#include "depthwise/gather.h"
#include "depthwise/reduce.h"
#include "gather/narrow.h"
#include "gather/rows.h"
#include "gather/wide.h"
#include "gather/winograd.h"
#include "reduce/narrow.h"
#include "reduce/wide.h"

namespace gconv {
namespace {

using T = ELEMENT;

bool run(const Plan& plan, Role role, const Problem& p, const void* first, const void* second, void* result,
         void* scratch, const Parallel& parallel) try {
  auto with = [&](const auto& kernel) {
    kernel.run(static_cast<const T*>(first), static_cast<const T*>(second), static_cast<T*>(result), scratch,
               parallel);
    return true;
  };
  if (role == Role::w) switch (plan.kernel) {
      case Kernel::depthwise: return with(ReduceDepthwise<T>(plan, p));
      case Kernel::narrow: return with(ReduceNarrow<T>(plan, p));
      default: return with(ReduceWide<T>(plan, p));
    }
  switch (plan.kernel) {
    case Kernel::depthwise: return with(GatherDepthwise<T>(plan, role, p));
    case Kernel::winograd: return with(GatherWinograd<T>(plan, role, p));
    case Kernel::matrix:
    case Kernel::rows: return with(GatherRows<T>(plan, role, p));
    case Kernel::narrow: return with(GatherNarrow<T>(plan, role, p));
    default: return with(GatherWide<T>(plan, role, p));
  }
} catch (OutOfMemory) {
  return false;
}

#define TEXT(name) TEXT_OF(name)
#define TEXT_OF(name) #name

}  // namespace

extern const Unit UNIT;
const Unit UNIT{{TEXT(SET), VECTOR_BYTES, REGISTERS}, run};

}  // namespace gconv
