// What the numbers of a problem may be, and what each kernel can do.

#include <initializer_list>

#include "plan.h"

namespace gconv {
namespace {

bool is_depthwise(const Problem& p) { return p.channels == 1 && p.filters == 1; }

bool gathers(Role role, const Problem&) { return role != Role::w; }

// What a tile of `rows` over a border copies stays in the nearest cache.
bool copies_little(Role role, const Problem& p) {
  double columns = 14.0 * double(p.strides[2]) + double(p.window[2]);
  return double(p.window[0]) * double(p.window[1]) * columns * double(sources_of(role, p)) <= 1 << 15;
}

bool is_three_by_three(Role role, const Problem& p) {
  const int64_t* results = role == Role::x ? p.in : p.out;
  for (int i = 1; i < 3; ++i)
    if (p.window[i] != 3 || p.strides[i] != 1 || results[i] < 1) return false;
  return true;
}

bool is_flat(Role role, const Problem& p) {
  const int64_t* results = role == Role::x ? p.in : p.out;
  return p.window[0] == 1 || results[0] >= 2 * p.window[0];
}

// Whether more than half of the products of a 3 x 3 window meet a source.
bool most_taps_meet(Role role, const Problem& p) {
  const int64_t *results = role == Role::x ? p.in : p.out, *sources = role == Role::x ? p.out : p.in;
  double met = 1;
  for (int i = 1; i < 3; ++i) {
    int64_t pairs = 0;  // of a result and a tap that meet a source
    for (int64_t t = 0; t < 3; ++t) {
      int64_t shift = t * p.dilation[i] - p.low[i],
              first = role == Role::x ? -shift : shift;  // source of result 0
      pairs += maximum(0, minimum(sources[i] - first, results[i]) - maximum(-first, 0));
    }
    met *= double(pairs) / 3 / double(results[i]);
  }
  return 2 * met > 1;
}

struct Requirement {
  Kernel kernel;
  bool (*holds)(Role, const Problem&);
  const char* otherwise;
};

// What each kernel asks of a problem, from top to bottom. `wide` and `narrow` ask for nothing.
const Requirement REQUIREMENTS[] = {
    {Kernel::depthwise, [](Role, const Problem& p) { return is_depthwise(p); },
     "it takes groups of one channel and one filter"},

    {Kernel::winograd, gathers, "it computes roles y and x"},
    {Kernel::winograd, is_three_by_three, "it takes windows of 3 x 3 without strides"},
    {Kernel::winograd, [](Role, const Problem& p) { return !p.plain; },
     "its results are not the plain sums of their products, which a precision above the default asks for"},
    // Rounding errors are as large as those of plain sums from 8 channels on (tests/test_native.py measures
    // them).
    {Kernel::winograd, [](Role role, const Problem& p) { return sources_of(role, p) >= 8; },
     "with fewer than 8 source channels its rounding errors would be larger than those of plain sums"},
    {Kernel::winograd, is_flat,
     "its errors would be larger than those of plain sums: most windows hang over in depth"},
    {Kernel::winograd, most_taps_meet,
     "its errors would be larger than those of plain sums: most taps meet padding"},

    {Kernel::matrix, gathers, "it computes roles y and x"},
    {Kernel::matrix, [](Role, const Problem& p) { return meets_every_pixel(p); },
     "it takes a single tap that meets every pixel: no strides and no padding"},

    {Kernel::rows, gathers, "it computes roles y and x"},
    {Kernel::rows, [](Role, const Problem& p) { return p.groups == 1; }, "it takes one group"},
    {Kernel::rows, [](Role role, const Problem& p) { return sources_of(role, p) <= 16; },
     "it takes up to 16 source channels"},
    {Kernel::rows, [](Role, const Problem& p) { return p.window[2] > 1 && p.dilation[2] == 1; },
     "it takes rows of neighbouring taps: a window of more than one column, without dilation"},
    {Kernel::rows, [](Role role, const Problem& p) { return role == Role::y || p.strides[2] == 1; },
     "it takes no strides along the rows in role x"},
    {Kernel::rows, copies_little, "what it copies at borders would not stay in the nearest cache"},
};

}  // namespace

const char* check(const Problem& p) {
  constexpr int64_t LARGEST = int64_t{1} << 31;  // products of two stay far inside 64 bits
  for (int i = 0; i < 3; ++i) {
    if (p.in[i] < 0 || p.in[i] > LARGEST || p.out[i] < 0 || p.out[i] > LARGEST)
      return "spatial sizes must lie in [0, 2^31]";
    if (p.window[i] < 1 || p.window[i] > LARGEST) return "window sizes must lie in [1, 2^31]";
    if (p.strides[i] < 1 || p.strides[i] > LARGEST) return "strides must lie in [1, 2^31]";
    if (p.dilation[i] < 1 || p.dilation[i] > LARGEST) return "dilations must lie in [1, 2^31]";
    if (p.low[i] < -LARGEST || p.low[i] > LARGEST) return "paddings must lie in [-2^31, 2^31]";
  }
  for (int64_t size : {p.groups, p.channels, p.filters})
    if (size < 1 || size > LARGEST) return "groups, channels and filters must lie in [1, 2^31]";
  return nullptr;
}

const char* why_not(Kernel kernel, Role role, const Problem& problem) {
  if (problem.gated && kernel != Kernel::matrix) return "it does not multiply its sources by a gate";
  for (const Requirement& r : REQUIREMENTS)
    if (r.kernel == kernel && !r.holds(role, problem)) return r.otherwise;
  return nullptr;
}

}  // namespace gconv
