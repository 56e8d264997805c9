// Random problems through every kernel that can do them, with all vectors, against plain loops in double
// precision.
//
//   fuzz COUNT [SEED]
//
// Roles y and x run once more with a random epilogue, whose results are compared with those of the plain
// ones, and where a kernel takes a gate with one, whose results are compared with loops.
//
// Buffers are exactly as large as their shapes, so that the sanitizers see whatever reaches beyond them. Each
// problem also runs with 1, 2 and 8 threads, whose results must be the same to the last bit. Of some, each
// request for memory fails in its turn: the call must then say so, or give the same results.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "parallel.h"
#include "plan.h"
#include "processor.h"
#include "unit.h"

namespace gconv {
GCONV_UNITS(long_vectors);  // of 64 bytes with 16 registers
GCONV_PAIRS(baseline);      // without the instruction that adds both products
}  // namespace gconv

using namespace gconv;

namespace {

struct Threads {  // every task a thread of its own
  std::mutex mutex;
  std::vector<std::thread> all;
  template <class F>
  void Schedule(F&& f) {
    std::lock_guard<std::mutex> lock(mutex);
    all.reserve(8);
    all.emplace_back(std::forward<F>(f));
  }
  ~Threads() {
    for (auto& t : all) t.join();
  }
};

// --- memory that is refused --------------------------------------------------------------------------------

// How many more requests are granted while `limited`, and how many are refused then.
std::atomic<bool> limited{false};
std::atomic<int64_t> granted{0}, refused{0}, refusals{0};

bool refuse() {
  if (!limited || --granted >= 0 || refusals <= 0) return false;
  --refusals, ++refused;
  return true;
}

}  // namespace

// The linker makes these of the kernels' and this file's calls of malloc, aligned_alloc and new.
extern "C" {
void* __real_malloc(size_t size);
void* __real_aligned_alloc(size_t alignment, size_t size);
void* __real__Znwm(size_t size);
void* __real__ZnwmSt11align_val_t(size_t size, std::align_val_t align);
void* __wrap_malloc(size_t size) { return refuse() ? nullptr : __real_malloc(size); }
void* __wrap_aligned_alloc(size_t alignment, size_t size) {
  return refuse() ? nullptr : __real_aligned_alloc(alignment, size);
}
void* __wrap__Znwm(size_t size) {
  if (refuse()) throw std::bad_alloc();
  return __real__Znwm(size);
}
void* __wrap__ZnwmSt11align_val_t(size_t size, std::align_val_t align) {
  if (refuse()) throw std::bad_alloc();
  return __real__ZnwmSt11align_val_t(size, align);
}
}

namespace {

// --- the oracle: T(x, w, y) summed over every product it has -----------------------------------------------

template <class F>
void every_product(const Problem& p, const F& f) {
  int64_t in = p.groups * p.channels, out = p.groups * p.filters;
  for (int64_t n = 0; n < p.batch; ++n)
    for (int64_t o0 = 0; o0 < p.out[0]; ++o0)
      for (int64_t o1 = 0; o1 < p.out[1]; ++o1)
        for (int64_t o2 = 0; o2 < p.out[2]; ++o2)
          for (int64_t k0 = 0; k0 < p.window[0]; ++k0)
            for (int64_t k1 = 0; k1 < p.window[1]; ++k1)
              for (int64_t k2 = 0; k2 < p.window[2]; ++k2) {
                int64_t i0 = o0 * p.strides[0] + k0 * p.dilation[0] - p.low[0];
                int64_t i1 = o1 * p.strides[1] + k1 * p.dilation[1] - p.low[1];
                int64_t i2 = o2 * p.strides[2] + k2 * p.dilation[2] - p.low[2];
                if (i0 < 0 || i0 >= p.in[0] || i1 < 0 || i1 >= p.in[1] || i2 < 0 || i2 >= p.in[2]) continue;
                int64_t x = (((n * p.in[0] + i0) * p.in[1] + i1) * p.in[2] + i2) * in;
                int64_t y = (((n * p.out[0] + o0) * p.out[1] + o1) * p.out[2] + o2) * out;
                int64_t w = ((k0 * p.window[1] + k1) * p.window[2] + k2) * p.channels * out;
                for (int64_t g = 0; g < p.groups; ++g)
                  for (int64_t j = 0; j < p.channels; ++j)
                    for (int64_t k = 0; k < p.filters; ++k)
                      f(x + g * p.channels + j, w + j * out + g * p.filters + k, y + g * p.filters + k);
              }
}

// --- elements ----------------------------------------------------------------------------------------------

double from_bf16(uint16_t b) {
  uint32_t bits = uint32_t(b) << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
double from_f16(uint16_t h) {
  int exponent = h >> 10 & 31, mantissa = h & 1023;
  double magnitude = exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
  return h >> 15 ? -magnitude : magnitude;
}

template <class T>
struct Aligned {  // as XLA's buffers are
  using value_type = T;
  static constexpr std::align_val_t LINE{64};
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), LINE)); }
  void deallocate(T* p, size_t) { ::operator delete(p, LINE); }
  bool operator==(Aligned) const { return true; }
  bool operator!=(Aligned) const { return false; }
};
using Bytes = std::vector<unsigned char, Aligned<unsigned char>>;

struct Buffer {  // of exactly its elements, on the heap
  Type type;
  int64_t size;
  Bytes bytes;
  Buffer(Type type, int64_t size) : type(type), size(size), bytes(size * width(type)) {
    bytes.shrink_to_fit();
  }
  static int64_t width(Type t) { return t == Type::f32 ? 4 : t == Type::f64 ? 8 : 2; }
  double get(int64_t i) const {
    if (type == Type::f32) return reinterpret_cast<const float*>(bytes.data())[i];
    if (type == Type::f64) return reinterpret_cast<const double*>(bytes.data())[i];
    uint16_t h = reinterpret_cast<const uint16_t*>(bytes.data())[i];
    return type == Type::bf16 ? from_bf16(h) : from_f16(h);
  }
  void fill(std::mt19937& random) {
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < size; ++i) {
      if (type == Type::f32)
        reinterpret_cast<float*>(bytes.data())[i] = float(normal(random));
      else if (type == Type::f64)
        reinterpret_cast<double*>(bytes.data())[i] = normal(random);
      else  // any sign, a mantissa, and an exponent near 1
        reinterpret_cast<uint16_t*>(bytes.data())[i] =
            type == Type::bf16 ? (random() & 0x80ff) | 0x3f00 : (random() & 0x87ff) | 0x3800;
    }
  }
};

struct Set {
  const char* name;
  const Unit* units[4];
  const Unit* pairs = nullptr;
};
#ifdef ONLY_FLOAT
#define UNITS_OF(set)      \
  {                        \
    #set, { &set##_float } \
  }
#else
#define UNITS_OF(set)                                                 \
  {                                                                   \
    #set, { &set##_float, &set##_double, &set##_float, &set##_float } \
  }
#endif

int64_t runs = 0, gates = 0;  // of a kernel on a problem, and with a gate
int64_t survived = 0,
        reported = 0;  // calls to which memory was refused: that gave their results, and that said so

// --- what follows a convolution ----------------------------------------------------------------------------

double activated(Activation kind, double x, double slope) {
  double six = std::fmin(std::fmax(x + 3, 0), 6) / 6;
  switch (kind) {
    case Activation::relu: return std::fmax(x, 0);
    case Activation::relu6: return std::fmin(std::fmax(x, 0), 6);
    case Activation::leaky_relu: return x < 0 ? x * slope : x;
    case Activation::sigmoid: return 1 / (1 + std::exp(-x));
    case Activation::silu: return x / (1 + std::exp(-x));
    case Activation::hard_sigmoid: return six;
    case Activation::hard_silu: return x * six;
    case Activation::tanh: return std::tanh(x);
    case Activation::gelu: return x / 2 * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
    case Activation::gelu_exact: return x / 2 * std::erfc(-x * 0.7071067811865476);
    default: return x;
  }
}

// --- one problem -------------------------------------------------------------------------------------------

bool test(const Set& set, Role role, Type type, const Problem& p, bool refusing, std::mt19937& random) {
  Type result_type = gconv::result_type(type, p);
  int64_t in = p.batch * p.in[0] * p.in[1] * p.in[2] * p.groups * p.channels;
  int64_t out = p.batch * p.out[0] * p.out[1] * p.out[2] * p.groups * p.filters;
  int64_t kernel = p.window[0] * p.window[1] * p.window[2] * p.channels * p.groups * p.filters;
  Buffer x(type, in), w(type, kernel), y(type, out);
  x.fill(random), w.fill(random), y.fill(random);
  Buffer result(result_type, role == Role::x ? in : role == Role::w ? kernel : out);
  const Buffer &first = role == Role::x ? y : x, &second = role == Role::w ? y : w;
  std::vector<double> expected(result.size), size(result.size);  // and the sum of the products' magnitudes
  std::vector<double> gated(result.size), gated_size(result.size);
  Type wide = type == Type::f64 ? Type::f64 : Type::f32;
  int64_t sources = p.groups * sources_of(role, p), image = first.size / p.batch;
  Buffer gate(wide, p.batch * sources);
  gate.fill(random);
  every_product(p, [&](int64_t i, int64_t k, int64_t o) {
    int64_t to = role == Role::x ? i : role == Role::w ? k : o, from = role == Role::x ? o : i;
    double product = role == Role::x   ? y.get(o) * w.get(k)
                     : role == Role::w ? x.get(i) * y.get(o)
                                       : x.get(i) * w.get(k);
    expected[to] += product, size[to] += std::fabs(product);
    product *= gate.get(from / image * sources + from % sources);
    gated[to] += product, gated_size[to] += std::fabs(product);
  });
  double half = result_type == Type::bf16  ? 1. / 256
                : result_type == Type::f16 ? 1. / 2048
                                           : 0,
         sum = type == Type::f64 ? 1e-15 : 6e-7;
  const Unit& unit = *set.units[int(type)];
  bool pairs = set.pairs && random() % 4;
  Processor processor{};
  processor.vectors[0][int(type)] = unit.vectors;
  processor.lengths = 1, processor.pairs = pairs, processor.two_passes = random() % 2;
  processor.cache = random() % 2 ? 0 : 1e18;  // x and y fill it or not
  auto right = [&](const char* kernel) {
    auto planned = [&](int64_t threads, bool frozen = false, bool gated = false) {
      Plan plan;
      Problem of = p;
      of.frozen = frozen, of.gated = gated;
      if (const char* why = plan_call(role, type, of, processor, threads, kernel, plan))
        std::printf("%s was not planned: %s\n", kernel, why), std::exit(1);
      plan.threads = threads;  // also where so many do not pay
      return plan;
    };
    std::vector<unsigned char> scratch(planned(1).scratch);
    auto run = [&](int64_t threads, const Epilogue& epilogue) {
      bool gated = epilogue.gate;
      memset(result.bytes.data(), 0xff, result.bytes.size());
      std::fill(scratch.begin(), scratch.end(), 0xff);
      Plan plan = planned(threads, false, gated);
      Problem of = p;
      of.gated = gated;
      Threads pool;
      OnPool<Threads> parallel(&pool, threads, true);
      return plan.scratch == int64_t(scratch.size()) &&
             (plan.by_pairs ? *set.pairs : unit)
                 .run(plan, type, role, of, first.bytes.data(), second.bytes.data(), result.bytes.data(),
                      {scratch.data(), false, scratch.data() + packed_bytes(role, plan)}, epilogue, parallel);
    };
    // A frozen kernel: the first call packs it elsewhere, and the next ones have no other, where it is
    // packed.
    Plan frozen = planned(1, true);
    Bytes elsewhere(packed_bytes(role, frozen), 0xff);
    auto run_frozen = [&](int64_t threads, bool is_packed, const Epilogue& epilogue) {
      memset(result.bytes.data(), 0xff, result.bytes.size());
      Bytes rest(frozen.scratch, 0xff), none(second.bytes.size(), 0xff);
      Problem of = p;
      of.frozen = true;
      Threads pool;
      OnPool<Threads> parallel(&pool, threads, true);
      const Bytes& kernel = is_packed && frozen.packed ? none : second.bytes;
      return (frozen.by_pairs ? *set.pairs : unit)
          .run(planned(threads, true), type, role, of, first.bytes.data(), kernel.data(), result.bytes.data(),
               {elsewhere.data(), is_packed, rest.data()}, epilogue, parallel);
    };
    Bytes before;
    auto has_same_bits = [&](const char* with, const Epilogue& epilogue) {
      for (int64_t threads : {1, 2, 8}) {
        if (!run(threads, epilogue) || (threads > 1 && before != result.bytes)) {
          std::printf("with %s %ld threads give other bits\n", with, long(threads));
          return false;
        }
        before = result.bytes;
      }
      return true;
    };
    auto survives = [&](const Epilogue& epilogue) {
      for (int64_t threads : {1, 2})
        for (int64_t n = 0; refusing; n += 1 + n / 16) {  // the n-th request, or it and all that follow
          granted = n, refused = 0, refusals = n % 2 ? 1 : INT64_MAX, limited = true;
          bool done = run(threads, epilogue);
          limited = false;
          if (!refused) break;
          if (done && before != result.bytes) {
            std::printf("wrong after request %ld for memory was refused, %ld threads\n", long(n),
                        long(threads));
            return false;
          }
          (done ? survived : reported) += 1;
        }
      return true;
    };
    // Whether each result is what it should be, beside products of such magnitudes.
    auto is_sum = [&](const std::vector<double>& wanted, const std::vector<double>& magnitudes) {
      for (int64_t i = 0; i < result.size; ++i)
        if (!(std::fabs(result.get(i) - wanted[i]) <=
              half * std::fabs(wanted[i]) + sum * magnitudes[i] + (half ? 6e-8 : 0))) {
          std::printf("element %ld is %.9g, not %.9g\n", long(i), result.get(i), wanted[i]);
          return false;
        }
      return true;
    };
    if (!has_same_bits("nothing", {}) || !survives({}) || !is_sum(expected, size)) return false;
    ++runs;
    if (role == Role::w) return true;
    int64_t channels = p.groups * results_of(role, p);
    Buffer scale(wide, channels), shift(wide, channels), residual(result_type, result.size), plain = result;
    scale.fill(random), shift.fill(random), residual.fill(random);
    Epilogue epilogue;
    epilogue.activation = static_cast<Activation>(random() % (LAST_ACTIVATION + 1)), epilogue.slope = 0.25;
    if (random() % 2) epilogue.scale = scale.bytes.data();
    if (random() % 2) epilogue.shift = shift.bytes.data();
    if (random() % 2) epilogue.residual = residual.bytes.data();
    if (!has_same_bits("an epilogue", epilogue)) return false;
    // Where nothing is to be packed another kernel may be chosen, which was run by its own name.
    bool same = frozen.kernel == planned(1).kernel;
    for (int64_t threads : {1, 2})
      if (same && (!run_frozen(threads, threads > 1, epilogue) || before != result.bytes)) {
        std::printf("with a frozen kernel %ld threads give other bits\n", long(threads));
        return false;
      }
    for (int64_t i = 0; i < result.size; ++i) {
      double terms[] = {plain.get(i) * (epilogue.scale ? scale.get(i % channels) : 1),
                        epilogue.shift ? shift.get(i % channels) : 0,
                        epilogue.residual ? residual.get(i) : 0};
      double wanted = activated(epilogue.activation, terms[0] + terms[1] + terms[2], 0.25);
      double magnitude = 1 + std::fabs(terms[0]) + std::fabs(terms[1]) + std::fabs(terms[2]);
      if (!(std::fabs(result.get(i) - wanted) <= half * std::fabs(wanted) + sum * magnitude)) {
        std::printf("with activation %ld element %ld is %.9g, not %.9g\n", long(epilogue.activation), long(i),
                    result.get(i), wanted);
        return false;
      }
    }
    Problem with_gate = p;
    with_gate.gated = true;
    Plan plan;
    if (plan_call(role, type, with_gate, processor, 1, kernel, plan)) return true;
    Epilogue gating;
    gating.gate = gate.bytes.data();
    scratch.resize(plan.scratch);
    if (!has_same_bits("a gate", gating) || !survives(gating) || !is_sum(gated, gated_size)) return false;
    ++gates;
    return true;
  };
  for (Kernel kernel : EVERY_KERNEL) {
    if (why_not(kernel, role, p)) continue;
    std::string name = name_of(kernel) + ("." + std::to_string(unit.vectors.bytes));
    if (right(name.c_str())) continue;
    std::printf("%s: ", name.c_str());
    return false;
  }
  return right("");  // the one that is chosen
}

}  // namespace

int main(int argc, char** argv) {
  long count = argc > 1 ? std::atol(argv[1]) : 1000,
       seed = argc > 2 ? std::atol(argv[2]) : long(std::random_device{}());
  std::mt19937 random(seed);
  auto below = [&](int64_t n) { return int64_t(random() % uint64_t(n)); };
  std::vector<Set> sets{UNITS_OF(baseline)};
#ifndef ONLY_FLOAT
  sets[0].pairs = &baseline_pairs;
#endif
#ifdef GCONV_X86
  if (has_avx2()) {
    sets.push_back(UNITS_OF(avx2));
#ifdef GCONV_LONG_VECTORS
    sets.push_back(UNITS_OF(long_vectors));
#endif
  }
  if (has_avx512()) {
    sets.push_back(UNITS_OF(avx512));
    sets.push_back(
        {"avx512_short", {&avx512_short_float, &avx2_double, &avx512_short_float, &avx512_short_float}});
    if (has_avx512_bf16())
      sets[sets.size() - 2].pairs = &avx512_pairs, sets.back().pairs = &avx512_short_pairs;
  }
#endif
  long done = 0;
  while (done < count) {
    Problem p{};
    p.batch = 1 + below(3);
    int rank = 1 + below(3);
    for (int i = 0; i < 3; ++i) {
      bool used = i >= 3 - rank;
      p.in[i] = used ? 1 + below(rank == 1 ? 80 : rank == 2 ? 15 : 7) : 1;
      p.window[i] = used ? 1 + below(rank == 1 ? 12 : rank == 2 ? 6 : 4) : 1;
      p.strides[i] = used ? 1 + below(4) : 1;
      p.dilation[i] = used ? 1 + below(3) : 1;
      p.low[i] = used ? below(8) - 2 : 0;
      p.out[i] =
          used ? 1 + below((p.in[i] + 8) / p.strides[i] + 1) : 1;  // also where no padding would put them
      if (used && below(40) == 0) p.strides[i] = int64_t{1} << (1 + below(31));
      if (used && below(40) == 0) p.dilation[i] = int64_t{1} << (1 + below(31));
      if (used && below(40) == 0) p.low[i] = (int64_t{1} << (1 + below(31))) * (below(2) ? 1 : -1);
    }
    bool three = below(4) == 0;  // the windows that are taken in squares
    for (int i = 1; three && i < 3; ++i) p.window[i] = 3, p.strides[i] = 1;
    p.plain = below(4) == 0;
    const int64_t sizes[] = {1, 1, 1, 2, 3, 4, 4, 5, 7, 8, 9, 12, 16, 17, 24, 33};
    p.channels = sizes[below(16)], p.filters = sizes[below(16)], p.groups = 1 + below(20);
    if (below(3) == 0)
      p.channels = p.filters = 1, p.groups = 1 + below(70);
    else if (below(3) == 0)
      p.channels = 1 + below(below(2) ? 5 : 220), p.filters = 1 + below(below(3) ? 220 : 5),
      p.groups = 1 + below(2);
    if (below(4) == 0)
      (p.channels == 1 && p.filters == 1 ? p.groups : p.filters) = 16
                                                                   << below(3);  // whole lines of the cache
    if (three && below(2)) p.channels = 8 + below(40), p.filters = 8 + below(40), p.groups = 1 + below(4);
    if (below(6) == 0) {  // pixels that lie far apart, a power of two
      p.channels = 8 << below(3), p.filters = 8 << below(3), p.groups = (256 << below(2)) / p.channels;
      for (int i = 0; i < 3; ++i) {
        p.in[i] = std::min(p.in[i], 1 + below(9)), p.out[i] = std::min(p.out[i], 1 + below(6));
        p.window[i] = std::min(p.window[i], 1 + below(3));
      }
    }
    if (below(8) == 0) {  // a single tap that meets every pixel
      for (int i = 0; i < 3; ++i) p.window[i] = p.strides[i] = 1, p.low[i] = 0, p.out[i] = p.in[i];
      p.channels = 1 + below(60), p.filters = 1 + below(below(2) ? 8 : 150), p.groups = 1 + below(4);
      if (below(4) == 0)  // and pixels that crowd the nearest cache
        p.groups = 1 << below(3), p.channels = (1024 << below(2)) / p.groups, p.filters = 1 + below(20);
    }
    if (below(10) == 0) {  // a row of taps of one group, whose sources are neighbours
      p.dilation[2] = p.groups = 1, p.channels = 1 + below(20), p.filters = 1 + below(below(2) ? 16 : 100);
      if (below(2)) p.strides[2] = 1;
    }
    double work = double(p.batch) * p.out[0] * p.out[1] * p.out[2] * p.window[0] * p.window[1] * p.window[2] *
                  p.groups * p.channels * p.filters;
    if (work > 2e6) continue;
    for (const Set& set : sets) {
      Role role = Role(below(3));
      Type type = Type(below(3) ? 0 : below(4));
      if (set.pairs && below(3) == 0) type = Type::bf16;
      bool refusing = below(4) == 0;
#ifdef ONLY_FLOAT
      type = Type::f32;
#endif
      p.widens = (type == Type::bf16 || type == Type::f16) && below(3) == 0;
      if (!test(set, role, type, p, refusing, random)) {
        std::printf("%s, role %d, type %d to %d, batch %ld, groups %ld x (%ld -> %ld)\n", set.name, int(role),
                    int(type), int(result_type(type, p)), long(p.batch), long(p.groups), long(p.channels),
                    long(p.filters));
        for (int i = 0; i < 3; ++i)
          std::printf("axis %d: in %ld, out %ld, window %ld, stride %ld, low %ld, dilation %ld\n", i,
                      long(p.in[i]), long(p.out[i]), long(p.window[i]), long(p.strides[i]), long(p.low[i]),
                      long(p.dilation[i]));
        std::printf("seed %ld, problem %ld\n", seed, done);
        return 1;
      }
    }
    ++done;
  }
  std::printf("%ld problems, %ld instruction sets, %ld kernels run, %ld with a gate, seed %ld: all equal\n",
              done, long(sets.size()), long(runs), long(gates), seed);
  std::printf("memory was refused to %ld calls: %ld said so, %ld gave their results\n",
              long(survived + reported), long(reported), long(survived));
  return (reported == 0 || gates == 0) && count >= 100;
}
