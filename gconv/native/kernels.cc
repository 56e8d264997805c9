// The kernels of one instruction set: compiled once for each, with GCONV_KERNELS its name and VECTOR_BYTES its vectors' width.

#include "gather_depthwise.h"
#include "gather_narrow.h"
#include "gather_rows.h"
#include "gather_wide.h"
#include "gather_winograd.h"
#include "problem.h"
#include "reduce_depthwise.h"
#include "reduce_narrow.h"
#include "reduce_wide.h"

namespace gconv {
namespace {

// Calls f with the kernels of a role. Wide groups have lanes of results of one group, of which the last vector may be part; narrow
// groups have lanes of channels of several groups. Measured: more than half a vector of results is wide already, from 5 sources on
// and in a single group, and so are sums of a single tap, but of up to 4 results from many sources.
template <class T, class F>
auto choose(Role role, const Problem& p, const F& f) {
  constexpr int L = LANES<Wide<T>>;
  int64_t results = results_of(role, p), sources = sources_of(role, p);
  bool wide = results >= L || (2 * results > L && (sources > 4 || p.groups == 1));
  bool many = results <= 4 && sources * (p.groups > 1 ? 2 : 1) >= (REGISTERS == 32 ? 32 : 64);
  bool single = has_one_tap(p) && results > 2 && sources > 2 && !(many && role != Role::w);
  if (role == Role::w) {
    if (is_depthwise(p)) return f(ReduceDepthwise<T>(p));
    if (wide || single) return f(ReduceWide<T>(p));
    return f(ReduceNarrow<T>(p));
  }
  if (is_depthwise(p)) return f(GatherDepthwise<T>(role, p));
  bool tree = results == 4 && sources == 4;
  if (!wide && (!single || tree)) return f(GatherNarrow<T>(role, p));
  if (by_squares(role, p)) return f(GatherWinograd<T>(role, p));
  if (GatherRows<T>::fits(role, p)) return f(GatherRows<T>(role, p));
  return f(GatherWide<T>(role, p));
}

template <class F>
auto with_type(Type type, const F& f) {
  switch (type) {
#ifndef ONLY_FLOAT  // for a quick build while tuning
    case Type::f64: return f(double{});
    case Type::bf16: return f(Bf16{});
    case Type::f16: return f(F16{});
#endif
    default: return f(float{});
  }
}

int64_t scratch_bytes(Role role, Type type, const Problem& problem) try {
  return with_type(type, [&](auto t) {
    return choose<decltype(t)>(role, problem, [](const auto& kernel) { return kernel.scratch_bytes(); });
  });
} catch (OutOfMemory) {
  return -1;
}

Status run(Role role, Type type, const Problem& problem, const void* first, const void* second, void* result, void* scratch,
           int64_t bytes, const Parallel& parallel) try {
  return with_type(type, [&](auto t) {
    using T = decltype(t);
    return choose<T>(role, problem, [&](const auto& kernel) {
      if (bytes < kernel.scratch_bytes()) return Status::small_scratch;
      kernel.run(static_cast<const T*>(first), static_cast<const T*>(second), static_cast<T*>(result), scratch, parallel);
      return Status::done;
    });
  });
} catch (OutOfMemory) {
  return Status::no_memory;
}

#define TEXT(name) TEXT_OF(name)
#define TEXT_OF(name) #name

}  // namespace

extern const Kernels GCONV_KERNELS;
const Kernels GCONV_KERNELS{TEXT(GCONV_KERNELS), VECTOR_BYTES, scratch_bytes, run};

}  // namespace gconv
