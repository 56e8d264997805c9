// The passes of batch norm with one length of vectors of one instruction set, for one type. Compiled once for
// each: UNIT is its name, SET and VECTOR_BYTES are its vectors, and ELEMENT is the type.

#include "norm/norm.h"

#include "norm/passes.h"

namespace gconv {
namespace {

using T = ELEMENT;

bool run(Pass pass, const Norm& p, const NormBuffers& b, const Parallel& parallel) try {
  auto with = [&](auto relu, auto residual) {
    constexpr bool RELU = decltype(relu)::value, RESIDUAL = decltype(residual)::value;
    switch (pass) {
      case Pass::moments: return moments<T>(p, b, parallel);
      case Pass::apply: return apply<T, RELU, RESIDUAL>(p, b, parallel);
      case Pass::sums: return sums<T, RELU, RESIDUAL>(p, b, parallel);
      default: return backward<T, RELU, RESIDUAL>(p, b, parallel);
    }
  };
  if (p.relu)
    p.residual ? with(True{}, True{}) : with(True{}, False{});
  else
    p.residual ? with(False{}, True{}) : with(False{}, False{});
  return true;
} catch (OutOfMemory) {
  return false;
}

#define TEXT(name) TEXT_OF(name)
#define TEXT_OF(name) #name

}  // namespace

extern const NormUnit UNIT;
const NormUnit UNIT{TEXT(SET), run};

}  // namespace gconv
