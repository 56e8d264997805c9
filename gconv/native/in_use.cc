#include "in_use.h"

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "processor.h"

namespace gconv {
namespace {

// By types: float32, float64, bfloat16 and float16, of which all but the second are computed in float.
#define UNITS_OF(set) {&set##_float, &set##_double, &set##_float, &set##_float}
// Short vectors of float64 take avx2's unit.
#define UNITS_OF_AVX512 \
  UNITS_OF(avx512), { &avx512_short_float, &avx2_double, &avx512_short_float, &avx512_short_float }

// The best set first.
const Set SETS[] = {
#ifdef __x86_64__
    {"avx512_bf16",
     has_avx512_bf16(),
     has_fast_pairs(),
     {UNITS_OF_AVX512},
     {&avx512_pairs, &avx512_short_pairs}},
    {"avx512", has_avx512(), true, {UNITS_OF_AVX512}, {}},
    {"avx2", has_avx2(), true, {UNITS_OF(avx2), {}}, {}},
#endif
    {"baseline", true, true, {UNITS_OF(baseline), {}}, {}},
};

// Of the cache that a processor shares with its neighbours, where Linux tells (sysconf counts those of all
// neighbourhoods together).
double last_cache_bytes() {
  int kilobytes = 0;
  if (std::FILE* file = std::fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r")) {
    if (std::fscanf(file, "%d", &kilobytes) != 1) kilobytes = 0;  // as in 32768K
    std::fclose(file);
  }
  return 1024.0 * (kilobytes > 0 ? kilobytes : 32 << 10);
}

}  // namespace

InUse::InUse() {
  const char *named = std::getenv("GCONV_NATIVE_ISA"), *kernel = std::getenv("GCONV_NATIVE_KERNEL");
  for (const Set& candidate : SETS)
    if (!set && candidate.here && (named && *named ? !std::strcmp(named, candidate.name) : candidate.gains))
      set = &candidate;
  if (!set) return;
  if (kernel) forced = kernel;
  for (auto& units : set->units)
    if (units[0]) {
      for (int type = 0; type < 4; ++type) processor.vectors[processor.lengths][type] = units[type]->vectors;
      ++processor.lengths;
    }
  processor.pairs = set->pairs[0];
  processor.two_passes = has_two_passes();
  processor.cache = last_cache_bytes();
}

const InUse& in_use() {
  static const InUse found;
  return found;
}

// --- plans -------------------------------------------------------------------------------------------------

namespace {

// Plans a call, as plan_here does.
const char* plan_anew(Role role, Type type, const Problem& p, int64_t threads, const char* forced,
                      Plan& plan) {
  const InUse& here = in_use();
  if (!*forced && !here.forced.empty())
    if (!plan_call(role, type, p, here.processor, threads, here.forced.c_str(), plan)) return nullptr;
  return plan_call(role, type, p, here.processor, threads, forced, plan);
}

}  // namespace

// The same from the last plans of this thread: a program makes the same few calls again and again, and to
// plan one takes about a microsecond.
const char* plan_here(Role role, Type type, const Problem& p, int64_t threads, const char* forced,
                      Plan& plan) {
  struct Kept {
    std::array<int64_t, 26> call;
    Plan plan;
  };
  thread_local std::array<Kept, 64> kept{};
  if (*forced) return plan_anew(role, type, p, threads, forced, plan);
  std::array<int64_t, 26> call{
      1 + int64_t(role), int64_t(type), threads,    p.plain + 2 * p.widens + 4 * p.frozen + 8 * p.gated,
      p.batch,           p.groups,      p.channels, p.filters};
  const int64_t* of[] = {p.in, p.out, p.window, p.strides, p.low, p.dilation};
  for (int f = 0; f < 6; ++f)
    for (int i = 0; i < 3; ++i) call[8 + 3 * f + i] = of[f][i];
  uint64_t hash = 0;
  for (int64_t number : call) hash = (hash ^ uint64_t(number)) * 0x9e3779b97f4a7c15u;
  Kept& own = kept[hash >> 58];
  if (own.call != call) {
    if (const char* why = plan_anew(role, type, p, threads, forced, own.plan)) {
      own.call[0] = 0;
      return why;
    }
    own.call = call;
  }
  plan = own.plan;
  return nullptr;
}

}  // namespace gconv
