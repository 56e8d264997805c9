// The door to XLA: checks everything about a call, chooses the instruction set, and hands the buffers to its kernels.
//
// Nothing here trusts its caller: a shape, a type or an attribute that does not fit gives an error, never an access.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "parallel.h"
#include "problem.h"
#include "processor.h"
#include "xla/ffi/api/c_api.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace gconv {

extern const Kernels baseline;
#ifdef __x86_64__
extern const Kernels avx2, avx512, avx512_short;
#endif

namespace {

// --- instruction sets ------------------------------------------------------------------------------------------------------

// The best that this processor has, or the one that GCONV_NATIVE_ISA names; nullptr if it has not got that one.
const Kernels* choose_set() {
  const char* named = std::getenv("GCONV_NATIVE_ISA");
  auto wanted = [&](const Kernels& k) { return !named || !*named || !std::strcmp(named, k.name); };
#ifdef __x86_64__
  if (wanted(avx512) && has_avx512()) return &avx512;
  if (wanted(avx2) && has_avx2()) return &avx2;
#endif
  return wanted(baseline) ? &baseline : nullptr;
}

const Kernels* instruction_set() {
  static const Kernels* const chosen = choose_set();
  return chosen;
}

#ifdef __x86_64__
// Whether vectors of 512 bits take two passes through the arithmetic units, so that two of half the length are as fast: in AMD's
// Zen 4, of family 19h the only one that has AVX-512.
bool two_passes() {
  unsigned a = 0, b, c, d;
  __builtin_cpu_init();
  return __builtin_cpu_is("amd") && __get_cpuid(1, &a, &b, &c, &d) && (a >> 8 & 15) + (a >> 20 & 255) == 0x19;
}
#endif

// Of the instruction set in use, the kernels whose vectors the channels fill best (measured): AVX-512 has shorter ones too.
const Kernels& kernels_for(Role role, Type type, const Problem& p) {
  const Kernels& longest = *instruction_set();
#ifdef __x86_64__
  if (&longest == &avx512) {
    static const bool halves = two_passes();
    int64_t lanes = longest.vector_bytes / (type == Type::f64 ? 8 : 4);
    int64_t filled = is_depthwise(p) ? p.groups : results_of(role, p);  // what vectors run along
    int64_t sources = sources_of(role, p);
    auto padded = [&](int64_t lanes) { return (filled + lanes - 1) / lanes * lanes; };
    // Groups of 4 and of 8 channels lie side by side in a vector, for their sums are a tree (gather_narrow.h), as are those of 2
    // (below); not those of 8 with a single tap or taken in squares.
    bool eight = p.channels == 8 && !has_one_tap(p) && !by_squares(role, p);
    bool tree = p.channels == p.filters && (p.channels == 4 || eight) && lanes == 16;
    if (role != Role::w && tree) filled *= p.groups;
    bool whole = sources >= (has_one_tap(p) && p.groups == 1 ? 32 : 2 * lanes);
    if (role != Role::w && filled <= 4 && whole) return longest;  // lanes are sources: see `many` in kernels.cc
    bool most = filled < lanes && 2 * filled > lanes;  // of one vector
    if (most && (is_depthwise(p) ? !halves : sources > 4)) return longest;
    if (!is_depthwise(p) && sources <= 4 && filled <= 3 && role != Role::w)  // lanes are the sources of all groups
      return p.groups * sources > lanes / 2 ? longest : avx512_short;
    if (filled < lanes || (halves && padded(lanes) > 1.1 * padded(lanes / 2))) return avx512_short;
  }
#endif
  (void)role, (void)type, (void)p;
  return longest;
}

// --- checks ----------------------------------------------------------------------------------------------------------------

using Three = ffi::Span<const int64_t>;
constexpr int64_t LARGEST = int64_t{1} << 31;  // of any attribute: their products of two stay far inside 64 bits

// What is wrong with the attributes, or nullptr.
const char* check(const Problem& p) {
  for (int i = 0; i < 3; ++i) {
    if (p.in[i] < 0 || p.in[i] > LARGEST || p.out[i] < 0 || p.out[i] > LARGEST) return "spatial sizes must lie in [0, 2^31]";
    if (p.window[i] < 1 || p.window[i] > LARGEST) return "window sizes must lie in [1, 2^31]";
    if (p.strides[i] < 1 || p.strides[i] > LARGEST) return "strides must lie in [1, 2^31]";
    if (p.dilation[i] < 1 || p.dilation[i] > LARGEST) return "dilations must lie in [1, 2^31]";
    if (p.low[i] < -LARGEST || p.low[i] > LARGEST) return "paddings must lie in [-2^31, 2^31]";
  }
  for (int64_t size : {p.groups, p.channels, p.filters})
    if (size < 1 || size > LARGEST) return "groups, channels and filters must lie in [1, 2^31]";
  return nullptr;
}

bool read(Problem& p, Three in, Three out, Three window, Three strides, Three low, Three dilation) {
  Three given[] = {in, out, window, strides, low, dilation};
  int64_t* fields[] = {p.in, p.out, p.window, p.strides, p.low, p.dilation};
  for (int f = 0; f < 6; ++f) {
    if (given[f].size() != 3) return false;
    for (int i = 0; i < 3; ++i) fields[f][i] = given[f][i];
  }
  return true;
}

// Whether a buffer has the shape of the argument that a role calls x, w or y; -1 stands for any batch.
bool has_shape(const ffi::AnyBuffer& buffer, Role argument, const Problem& p) {
  auto shape = buffer.dimensions();
  if (shape.size() != 5) return false;
  const int64_t* spatial = argument == Role::x ? p.in : argument == Role::y ? p.out : p.window;
  int64_t in_channels = 0, out_channels = 0;
  if (__builtin_mul_overflow(p.groups, p.channels, &in_channels) || __builtin_mul_overflow(p.groups, p.filters, &out_channels))
    return false;
  if (argument == Role::w)
    return shape[0] == spatial[0] && shape[1] == spatial[1] && shape[2] == spatial[2] && shape[3] == p.channels &&
           shape[4] == out_channels;
  return shape[0] == p.batch && shape[1] == spatial[0] && shape[2] == spatial[1] && shape[3] == spatial[2] &&
         shape[4] == (argument == Role::x ? in_channels : out_channels);
}

bool known(ffi::DataType from, Type& to) {
  switch (from) {
    case ffi::DataType::F32: to = Type::f32; return true;
    case ffi::DataType::F64: to = Type::f64; return true;
    case ffi::DataType::BF16: to = Type::bf16; return true;
    case ffi::DataType::F16: to = Type::f16; return true;
    default: return false;
  }
}

// --- memory ----------------------------------------------------------------------------------------------------------------

// Of the cache that a processor shares with its neighbours, where Linux tells (sysconf counts those of all neighbourhoods together).
double last_cache_bytes() {
  int kilobytes = 0;
  if (std::FILE* file = std::fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r")) {
    if (std::fscanf(file, "%d", &kilobytes) != 1) kilobytes = 0;  // as in 32768K
    std::fclose(file);
  }
  return 1024.0 * (kilobytes > 0 ? kilobytes : 32 << 10);
}

// Whether x and y are large beside the last cache: their beginning has left it when their end is reached. A result's lines then only
// cost to be fetched before they are written. Measured with AVX-512 and 32 MiB, the next reader of the result included: twice as fast
// where the two fill the cache, a third faster at 0.54 of it, as fast at half of it, slower below.
bool is_large(const Problem& p, int64_t element_bytes) {
  static const double cache = last_cache_bytes();
  double x = double(p.in[0]) * p.in[1] * p.in[2] * p.groups * p.channels;
  double y = double(p.out[0]) * p.out[1] * p.out[2] * p.groups * p.filters;
  return p.batch * (x + y) * element_bytes > 0.52 * cache;
}

// --- the call --------------------------------------------------------------------------------------------------------------

constexpr char NO_MEMORY[] = "gconv: out of memory for the lists that a kernel works with";

// Work that is done sooner than another thread wakes up, and work to which moving that thread to another processor adds little: in
// multiply-adds, a touched element counted as some.
constexpr double SMALL = 1.5e6, LONG = 20e6, ELEMENT = 4;

ffi::Error call(ffi::ThreadPool pool, ffi::AnyBuffer first, ffi::AnyBuffer second, ffi::Result<ffi::AnyBuffer> result,
                ffi::Result<ffi::AnyBuffer> scratch, int64_t role_number, Three in, Three out, Three window, Three strides,
                Three low, Three dilation, int64_t groups, int64_t channels, int64_t filters, bool plain) {
  auto refuse = [](const std::string& why) { return ffi::Error::InvalidArgument("gconv: " + why); };
  if (!instruction_set()) return refuse("this processor does not have the instruction set that GCONV_NATIVE_ISA names");
  if (role_number < 0 || role_number > 2) return refuse("the role must be 0 (y), 1 (x) or 2 (w)");
  Role role = static_cast<Role>(role_number);
  Role a = role == Role::x ? Role::y : Role::x, b = role == Role::w ? Role::y : Role::w;
  Problem p{};
  p.groups = groups, p.channels = channels, p.filters = filters, p.plain = plain;
  if (!read(p, in, out, window, strides, low, dilation)) return refuse("spatial attributes must have three entries");
  if (const char* why = check(p)) return refuse(why);
  if (first.dimensions().size() != 5 || second.dimensions().size() != 5 || result->dimensions().size() != 5)
    return refuse("operands and result must have five axes");
  p.batch = first.dimensions()[0];
  if (!has_shape(first, a, p) || !has_shape(second, b, p) || !has_shape(*result, role, p))
    return refuse("a shape does not fit the attributes");
  Type type;
  if (!known(first.element_type(), type)) return refuse("elements must be float32, float64, bfloat16 or float16");
  if (second.element_type() != first.element_type() || result->element_type() != first.element_type())
    return refuse("operands and result must have one type");
  if (result->element_count() == 0) return ffi::Error::Success();
  if (first.element_count() == 0 || second.element_count() == 0) {
    std::memset(result->untyped_data(), 0, result->size_bytes());
    return ffi::Error::Success();
  }

  p.large = is_large(p, result->size_bytes() / result->element_count());
  double pixels = double(p.batch) * p.out[0] * p.out[1] * p.out[2];
  double work = pixels * p.window[0] * p.window[1] * p.window[2] * groups * channels * filters +
                ELEMENT * (double(first.element_count()) + double(second.element_count()) + double(result->element_count()));
  auto run = [&](const Parallel& parallel) {
    return kernels_for(role, type, p).run(role, type, p, first.untyped_data(), second.untyped_data(), result->untyped_data(),
                                          scratch->untyped_data(), scratch->size_bytes(), parallel);
  };
  // No more threads than have that much to do: each costs the caller a call and the system a wake-up.
  int64_t threads = std::min<int64_t>(pool.num_threads(), std::max(1.0, work / SMALL));
  switch (threads > 1 ? run(OnPool<ffi::ThreadPool>(&pool, threads, work >= LONG)) : run(Parallel{in_the_caller, 1})) {
    case Status::done: return ffi::Error::Success();
    case Status::no_memory: return ffi::Error(ffi::ErrorCode::kResourceExhausted, NO_MEMORY);
    default: return refuse("the scratch is too small: the program was compiled for another instruction set");
  }
}

}  // namespace
}  // namespace gconv

// --- what the library exports ----------------------------------------------------------------------------------------------

#define EXPORT extern "C" __attribute__((visibility("default")))

// Nothing may be thrown through a C function: what is, is std::bad_alloc.
EXPORT XLA_FFI_Error* gconv_call(XLA_FFI_CallFrame* frame) try {
  using namespace gconv;
  static auto* const handler = ffi::Ffi::Bind()
                                   .Ctx<ffi::ThreadPool>()
                                   .Arg<ffi::AnyBuffer>()
                                   .Arg<ffi::AnyBuffer>()
                                   .Ret<ffi::AnyBuffer>()
                                   .Ret<ffi::AnyBuffer>()
                                   .Attr<int64_t>("role")
                                   .Attr<Three>("input")
                                   .Attr<Three>("output")
                                   .Attr<Three>("window")
                                   .Attr<Three>("strides")
                                   .Attr<Three>("low")
                                   .Attr<Three>("dilation")
                                   .Attr<int64_t>("groups")
                                   .Attr<int64_t>("channels")
                                   .Attr<int64_t>("filters")
                                   .Attr<bool>("plain")
                                   .To(call)
                                   .release();
  return handler->Call(frame);
} catch (...) {
  XLA_FFI_Error_Create_Args error{};
  error.struct_size = XLA_FFI_Error_Create_Args_STRUCT_SIZE;
  error.message = gconv::NO_MEMORY;
  error.errc = XLA_FFI_Error_Code_RESOURCE_EXHAUSTED;
  return frame->api->XLA_FFI_Error_Create(&error);
}

// The XLA FFI version of the headers that this was built with: major * 1000 + minor.
EXPORT int64_t gconv_ffi_version() { return XLA_FFI_API_MAJOR * 1000 + XLA_FFI_API_MINOR; }

// The instruction set in use, or nullptr.
EXPORT const char* gconv_instruction_set() {
  return gconv::instruction_set() ? gconv::instruction_set()->name : nullptr;
}

// Bytes of scratch of a call: type 0 to 3 is float32, float64, bfloat16, float16; spatial holds in, out, window, strides, low and
// dilation, three of each, and sizes holds batch, groups, channels, filters and plain (0 or 1). -1 for attributes that do not fit, -2
// where there is no memory to find out.
EXPORT int64_t gconv_scratch_bytes(int64_t role, int64_t type, const int64_t* spatial, const int64_t* sizes) {
  using namespace gconv;
  Problem p{};
  Three of[6] = {Three(spatial, 3),     Three(spatial + 3, 3),  Three(spatial + 6, 3),
                 Three(spatial + 9, 3), Three(spatial + 12, 3), Three(spatial + 15, 3)};
  read(p, of[0], of[1], of[2], of[3], of[4], of[5]);
  p.batch = sizes[0], p.groups = sizes[1], p.channels = sizes[2], p.filters = sizes[3], p.plain = sizes[4] != 0;
  if (!instruction_set() || role < 0 || role > 2 || type < 0 || type > 3 || p.batch < 0 || check(p)) return -1;
  Role r = static_cast<Role>(role);
  Type t = static_cast<Type>(type);
  int64_t bytes = kernels_for(r, t, p).scratch_bytes(r, t, p);
  return bytes < 0 ? -2 : bytes;
}
