// The passes of norm.h with one length of vectors of one instruction set. Compiled once for each: UNIT is
// its name, SET and VECTOR_BYTES are its vectors.

#include "norm/norm.h"

#include "norm/elementwise.h"
#include "norm/sums.h"

namespace gconv {
namespace {

template <class T>
bool run(Pass pass, const Norm& p, const NormBuffers& b, const Parallel& parallel) try {
  auto with = [&](auto relu) {
    constexpr bool RELU = decltype(relu)::value;
    switch (pass) {
      case Pass::apply: return apply<T, RELU>(p, b, parallel);
      case Pass::sums: return sums<T, RELU>(p, b, parallel);
      default: return backward<T, RELU>(p, b, parallel);
    }
  };
  switch (pass) {
    case Pass::moments: moments<T>(p, b, parallel); break;
    case Pass::totals: totals<T>(p, b, parallel); break;
    default: p.relu ? with(True{}) : with(False{});
  }
  return true;
} catch (OutOfMemory) {
  return false;
}

}  // namespace

extern const NormUnit UNIT;
const NormUnit UNIT{TEXT(SET), {run<float>, run<double>, run<Bf16>, run<F16>}};

}  // namespace gconv
