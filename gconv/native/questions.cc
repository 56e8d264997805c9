// What Python asks the library before a call: the instruction set in use, the plan of a call, and its memory.

#include <cstdio>
#include <cstring>
#include <string>

#include "door.h"
#include "in_use.h"
#include "plan.h"

namespace gconv {
namespace {

// Reads the numbers that the functions below are given; false where they do not fit.
bool read_problem(int64_t role, int64_t type, const int64_t* spatial, const int64_t* sizes, Problem& p,
                  Role& r) {
  int64_t* fields[] = {p.in, p.out, p.window, p.strides, p.low, p.dilation};
  for (int f = 0; f < 6; ++f) std::memcpy(fields[f], spatial + 3 * f, sizeof p.in);
  p.batch = sizes[0], p.groups = sizes[1], p.channels = sizes[2], p.filters = sizes[3],
  p.plain = sizes[4] & 1, p.widens = sizes[4] & 2, p.frozen = sizes[4] & 4, p.gated = sizes[4] & 8;
  if (!in_use().set || role < 0 || role > 2 || type < 0 || type > 3 || p.batch < 0 || check(p)) return false;
  r = static_cast<Role>(role);
  return true;
}

std::string as_json(const Plan& plan) {
  std::string out =
      "{\"kernel\": \"" + std::string(name_of(plan.kernel)) + "." + std::to_string(plan.bytes) + "\"";
  auto number = [&](const char* name, double value) {
    char text[64];
    std::snprintf(text, sizeof text, ", \"%s\": %.10g", name, value);
    out += text;
  };
  auto flag = [&](const char* name, bool value) {
    out += std::string(", \"") + name + "\": " + (value ? "true" : "false");
  };
  number("lanes", double(plan.lanes)), number("tile", double(plan.tile)),
      number("vectors", double(plan.vectors));
  number("rows", double(maximum(1, plan.rows))), number("stretch", double(plan.stretch));
  number("partitions", double(maximum(1, plan.partitions))), number("threads", double(plan.threads));
  number("scratch", double(plan.scratch)), number("cost", plan.cost), number("least", plan.least);
  flag("by_pairs", plan.by_pairs), flag("past_caches", plan.past_caches),
      flag("packs", plan.packed > 0 && plan.partitions == 0);
  return out + "}";
}

}  // namespace
}  // namespace gconv

// The instruction set in use, or nullptr.
EXPORT const char* gconv_instruction_set() {
  return gconv::in_use().set ? gconv::in_use().set->name : nullptr;
}

// Plans one call and lists the kernels of the instruction set in use, as JSON in `text`: {"plan": {...},
// "kernels":
// {"wide.64": null or why it cannot do the call, ...}}. Types 0 to 3 are float32, float64, bfloat16, float16;
// `spatial` holds in, out, window, strides, low and dilation, three of each, and `sizes` batch, groups,
// channels, filters and a sum of 1 (plain), 2 (widens), 4 (frozen) and 8 (gated); `forced` names a kernel or
// is empty. Returns how many bytes the text has, of which `size` are written, or -1 for attributes that do
// not fit; where the forced kernel cannot do the call, "plan" is why.
EXPORT int64_t gconv_plan(int64_t role, int64_t type, const int64_t* spatial, const int64_t* sizes,
                          int64_t threads, const char* forced, char* text, int64_t size) try {
  using namespace gconv;
  Problem p{};
  Role r;
  if (!read_problem(role, type, spatial, sizes, p, r)) return -1;
  Plan plan;
  const char* why = plan_here(r, static_cast<Type>(type), p, threads, forced, plan);
  std::string out = why ? "{\"plan\": \"" + std::string(why) + "\"" : "{\"plan\": " + as_json(plan);
  out += ", \"kernels\": {";
  const Processor& processor = in_use().processor;
  for (int i = 0; i < processor.lengths; ++i)
    for (Kernel kernel : EVERY_KERNEL) {
      const char* reason = why_not(kernel, r, p);
      out += std::string(out.back() == '{' ? "" : ", ") + "\"" + name_of(kernel) + "." +
             std::to_string(processor.vectors[i][type].bytes) +
             "\": " + (reason ? "\"" + std::string(reason) + "\"" : "null");
    }
  out += "}}";
  if (size > 0) std::snprintf(text, size_t(size), "%s", out.c_str());
  return int64_t(out.size());
} catch (...) {
  return -2;
}

// Bytes of scratch of a call, from the same numbers; -1 for attributes that do not fit and where no kernel
// can do it.
EXPORT int64_t gconv_scratch_bytes(int64_t role, int64_t type, const int64_t* spatial, const int64_t* sizes) {
  using namespace gconv;
  Problem p{};
  Role r;
  Plan plan;
  if (!read_problem(role, type, spatial, sizes, p, r)) return -1;
  return plan_here(r, static_cast<Type>(type), p, 1, "", plan) ? -1 : plan.scratch;
}
