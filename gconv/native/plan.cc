// Which kernel a call takes, and its sizes (sizes.cc): of those that can do it (requirements.cc) the one that
// costs least (cost.cc).

#include "plan.h"

#include <cstdio>
#include <cstring>

#include "cost.h"
#include "sizes.h"

namespace gconv {
namespace {

int64_t element_bytes(Type type) { return type == Type::f64 ? 8 : type == Type::f32 ? 4 : 2; }
int64_t number_bytes(Type type) { return type == Type::f64 ? 8 : 4; }  // of the type that sums are formed in

// Whether a kernel takes pairs of bfloat16: in roles y and x of source channels, in role w of pixels. The
// instruction takes numbers below the smallest normal one for zeros.
bool takes_pairs(Kernel kernel, Role role, Type type, const Problem& p, const Processor& processor) {
  if (type != Type::bf16 || !processor.pairs || p.plain || p.gated) return false;
  if (role == Role::w) return kernel == Kernel::wide;
  return kernel != Kernel::depthwise && kernel != Kernel::winograd && sources_of(role, p) % 2 == 0;
}

// Whether a kernel of narrow groups of bfloat16 has even and odd source channels in vectors of their own, as
// vectors/strand.h has: then a lane is two channels, a tree is a round shorter, and its results are even and
// odd ones too, which are rounded together. So it is where sums are a tree, and of two channels and one
// filter.
bool has_even_odd(Kernel kernel, Role role, Type type, const Problem& p, int64_t lanes, int64_t registers) {
  if (type != Type::bf16 || kernel != Kernel::narrow || role == Role::w) return false;
  int64_t sources = sources_of(role, p), results = results_of(role, p);
  return is_tree(sources, results, lanes, registers) || (sources == 2 && results == 1);
}

// Whether x and y are large beside the last cache: their beginning has left it when their end is reached. A
// result's lines then only cost to be fetched before they are written. With AVX-512 and 32 MiB, the next
// reader of the result included: twice as fast where the two fill the cache, a third faster at 0.54 of it, as
// fast at half of it, slower below.
bool fills_cache(const Call& c) {
  const Problem& p = c.p;
  double bytes[] = {double(c.element), double(c.element)};
  if (p.widens && c.role != Role::w) bytes[c.role == Role::y] = double(c.number);
  double x = double(p.in[0]) * double(p.in[1]) * double(p.in[2]) * double(p.groups * p.channels);
  double y = double(p.out[0]) * double(p.out[1]) * double(p.out[2]) * double(p.groups * p.filters);
  return double(p.batch) * (x * bytes[0] + y * bytes[1]) > 0.52 * c.cache;
}

// How many threads. Each costs the caller a call and the system a wake-up, so none has less to do than takes
// as long as its waking; where there is much to do, another's waking is worth a system call. The second
// thread pays earlier: it begins within half a microsecond where it has just worked, and a call that leaves
// it out sends it to sleep. On 2 threads of a Zen 4, 2026-11-28, networks with one image took 0.92
// (MobileNetV2), 0.98 and 0.98 of the time with PAIR as without it, and the same with half of it.
void plan_threads(const Call& c, int64_t threads, Plan& plan) {
  constexpr double PAIR = 0.6e6, SMALL = 1.5e6, LONG = 20e6,
                   ELEMENT = 4;  // multiply-adds; a touched element counts as some
  const Problem& p = c.p;
  double in = double(p.in[0]) * double(p.in[1]) * double(p.in[2]) * double(p.groups * p.channels);
  double out = double(p.out[0]) * double(p.out[1]) * double(p.out[2]) * double(p.groups * p.filters);
  double w = double(c.taps) * double(p.channels * p.groups * p.filters), batch = double(p.batch);
  double work = batch * out * double(c.taps) * double(p.channels) + ELEMENT * (batch * (in + out) + w);
  plan.threads = maximum(1, minimum(threads, maximum(work >= PAIR ? 2 : 1, int64_t(work / SMALL))));
  plan.much = work >= LONG;
}

Plan sized(Kernel kernel, int length, Role role, Type type, const Problem& p, const Processor& processor,
           int64_t threads) {
  Plan plan{};
  const Vectors& vectors = processor.vectors[length][int(type)];
  plan.kernel = kernel, plan.length = length;
  plan.bytes = vectors.bytes, plan.lanes = vectors.bytes / number_bytes(type);
  plan.by_pairs = takes_pairs(kernel, role, type, p, processor);
  plan.even_odd = !plan.by_pairs && has_even_odd(kernel, role, type, p, plan.lanes, vectors.registers);
  const Problem seen = kernel == Kernel::wide && role == Role::w ? with_long_rows(p) : p;
  const Call c{role,
               type,
               seen,
               sources_of(role, p),
               results_of(role, p),
               taps_of(p),
               plan.lanes,
               vectors.registers,
               element_bytes(type),
               number_bytes(type),
               sources_of(role, p) / (plan.by_pairs || plan.even_odd ? 2 : 1),
               processor.cache};
  plan.past_caches = plan.streams = fills_cache(c);
  plan_threads(c, threads, plan);
  size(c, plan);
  Counts counts = count(role, type, p, plan, vectors.registers);
  if (p.frozen && role != Role::w) plan.scratch -= packed_bytes(role, plan), counts.packed = 0;
  plan.cost = cost_of(role, plan, counts, processor.two_passes);
  plan.least = least_cost(role, type, p, processor);
  return plan;
}

// Whether `name` is that of a kernel with vectors of so many bytes, as "wide.64".
bool has_name(const char* name, Kernel kernel, int64_t bytes) {
  char own[32];
  std::snprintf(own, sizeof own, "%s.%ld", name_of(kernel), long(bytes));
  return !std::strcmp(name, own);
}

}  // namespace

const char* name_of(Kernel kernel) {
  switch (kernel) {
    case Kernel::depthwise: return "depthwise";
    case Kernel::winograd: return "winograd";
    case Kernel::matrix: return "matrix";
    case Kernel::rows: return "rows";
    case Kernel::wide: return "wide";
    default: return "narrow";
  }
}

const char* plan_call(Role role, Type type, const Problem& p, const Processor& processor, int64_t threads,
                      const char* forced, Plan& plan) {
  const char* why = *forced ? "no kernel of this instruction set has the name that was asked for"
                            : "no kernel multiplies these sources by a gate";
  bool found = false;
  for (int length = 0; length < processor.lengths; ++length)
    for (Kernel kernel : EVERY_KERNEL) {
      if (*forced && !has_name(forced, kernel, processor.vectors[length][int(type)].bytes)) continue;
      const char* reason = why_not(kernel, role, p);
      if (*forced) why = reason;
      if (reason) continue;
      Plan candidate = sized(kernel, length, role, type, p, processor, threads);
      if (!found || candidate.cost < plan.cost) plan = candidate;
      found = true;
    }
  return found ? nullptr : why;
}

}  // namespace gconv
