// The door to XLA: checks everything about a call, and hands the buffers to the kernels in use.
//
// Nothing here trusts its caller: a shape, a type or an attribute that does not fit gives an error, never an
// access.

#include <algorithm>
#include <cstring>
#include <string>

#include "door.h"
#include "in_use.h"
#include "parallel.h"
#include "plan.h"
#include "unit.h"

namespace gconv {

namespace {

// --- checks ------------------------------------------------------------------------------------------------

using Three = ffi::Span<const int64_t>;

// False where a size is not given for each of three axes.
bool read(Problem& p, Three in, Three out, Three window, Three strides, Three low, Three dilation) {
  Three given[] = {in, out, window, strides, low, dilation};
  int64_t* fields[] = {p.in, p.out, p.window, p.strides, p.low, p.dilation};
  for (int f = 0; f < 6; ++f) {
    if (given[f].size() != 3) return false;
    for (int i = 0; i < 3; ++i) fields[f][i] = given[f][i];
  }
  return true;
}

// Whether a buffer has the shape of the argument that a role calls x, w or y. Its own spatial axes are the
// last of the three, of which the others have size 1: to reshape an array for the call is free, but XLA of
// jaxlib 0.10 copies it where it is of bfloat16.
bool has_shape(const ffi::AnyBuffer& buffer, Role argument, const Problem& p) {
  auto shape = buffer.dimensions();
  if (shape.size() < 3 || shape.size() > 5) return false;
  const int64_t* spatial = argument == Role::x ? p.in : argument == Role::y ? p.out : p.window;
  int64_t in_channels = 0, out_channels = 0;
  if (__builtin_mul_overflow(p.groups, p.channels, &in_channels) ||
      __builtin_mul_overflow(p.groups, p.filters, &out_channels))
    return false;
  int left_out = 5 - int(shape.size());
  bool is_kernel = argument == Role::w, fits = true;
  for (int i = 0; i < 3; ++i)
    fits &= spatial[i] == (i < left_out ? 1 : shape[size_t(i - left_out + !is_kernel)]);
  int64_t other = is_kernel ? p.channels : p.batch, last = argument == Role::x ? in_channels : out_channels;
  return fits && shape[is_kernel ? shape.size() - 2 : 0] == other && shape.back() == last;
}

// --- the call ----------------------------------------------------------------------------------------------

constexpr char NO_MEMORY[] = "gconv: out of memory for the lists that a kernel works with";

// Puts the parts of an epilogue, which follow the role's operands, where they belong; what is wrong with
// them, or nullptr.
const char* read_epilogue(ffi::RemainingArgs parts, int64_t which, ffi::AnyBuffer sources,
                          ffi::AnyBuffer result, Epilogue& epilogue) {
  const void** fields[] = {&epilogue.scale, &epilogue.shift, &epilogue.residual, &epilogue.gate};
  if (which < 0 || which > 15) return "the parts must be a sum of 1, 2, 4 and 8";
  size_t next = 0;
  for (int i = 0; i < 4; ++i) {
    if (!(which >> i & 1)) continue;
    auto part =
        next < parts.size() ? parts.get<ffi::AnyBuffer>(next++) : ffi::Unexpected(ffi::Error::Internal(""));
    if (part.has_error()) return "there are fewer operands than parts";
    bool like_result = i == 2, of_sources = i == 3;
    auto shape = part->dimensions(), wanted = (of_sources ? sources : result).dimensions();
    bool fits = like_result  ? std::equal(shape.begin(), shape.end(), wanted.begin(), wanted.end())
                : of_sources ? shape.size() == 2 && shape[0] == wanted[0] && shape[1] == wanted.back()
                             : shape.size() == 1 && shape[0] == wanted.back();
    if (!fits) return "a part's shape does not fit";
    ffi::DataType type = like_result ? result.element_type() : sums_of(result.element_type());
    if (part->element_type() != type) return "a part's type does not fit the result";
    *fields[i] = part->untyped_data();
  }
  return next == parts.size() ? nullptr : "there are more operands than parts";
}

using Kept = State<1>;

// `frozen` is null where the kernel may change from call to call.
ffi::Error call(Kept* frozen, ffi::ThreadPool pool, ffi::AnyBuffer first, ffi::AnyBuffer second,
                ffi::RemainingArgs parts, ffi::Result<ffi::AnyBuffer> result,
                ffi::Result<ffi::AnyBuffer> scratch, int64_t role_number, Three in, Three out, Three window,
                Three strides, Three low, Three dilation, int64_t groups, int64_t channels, int64_t filters,
                bool plain, std::string_view kernel, int64_t which, int64_t activation, double slope) {
  auto refuse = [](const std::string& why) { return ffi::Error::InvalidArgument("gconv: " + why); };
  if (!in_use().set)
    return refuse("this processor does not have the instruction set that GCONV_NATIVE_ISA names");
  if (role_number < 0 || role_number > 2) return refuse("the role must be 0 (y), 1 (x) or 2 (w)");
  Role role = static_cast<Role>(role_number);
  Role a = role == Role::x ? Role::y : Role::x, b = role == Role::w ? Role::y : Role::w;
  Problem p{};
  p.groups = groups, p.channels = channels, p.filters = filters, p.plain = plain, p.frozen = frozen;
  if (!read(p, in, out, window, strides, low, dilation))
    return refuse("spatial attributes must have three entries");
  if (const char* why = check(p)) return refuse(why);
  size_t rank = result->dimensions().size();
  if (rank < 3 || rank > 5 || first.dimensions().size() != rank || second.dimensions().size() != rank)
    return refuse("operands and result must have one number of axes, three to five");
  p.batch = first.dimensions()[0];
  if (!has_shape(first, a, p) || !has_shape(second, b, p) || !has_shape(*result, role, p))
    return refuse("a shape does not fit the attributes");
  Type type;
  if (!known(first.element_type(), type))
    return refuse("elements must be float32, float64, bfloat16 or float16");
  p.widens = (type == Type::bf16 || type == Type::f16) && result->element_type() == ffi::DataType::F32;
  if (second.element_type() != first.element_type() ||
      (result->element_type() != first.element_type() && !p.widens))
    return refuse("operands must have one type, and the result theirs, or float32 where theirs is narrower");
  Epilogue epilogue;
  if (activation < 0 || activation > LAST_ACTIVATION) return refuse("no activation has this number");
  epilogue.activation = static_cast<Activation>(activation), epilogue.slope = slope;
  if (const char* why = read_epilogue(parts, which, first, *result, epilogue)) return refuse(why);
  p.gated = epilogue.gate;
  if (role == Role::w && (is_any(epilogue) || p.gated)) return refuse("role w has no epilogue");
  if (role == Role::w && frozen) return refuse("role w has no kernel that could be frozen");
  if (result->element_count() == 0) return ffi::Error::Success();
  if (first.element_count() == 0 || second.element_count() == 0) {
    if (is_any(epilogue) || p.gated) return refuse("an epilogue needs operands that are not empty");
    std::memset(result->untyped_data(), 0, result->size_bytes());
    return ffi::Error::Success();
  }

  Plan plan;
  if (const char* why = plan_here(role, type, p, pool.num_threads(), std::string(kernel).c_str(), plan))
    return refuse(why);
  if (int64_t(scratch->size_bytes()) < plan.scratch)
    return refuse("the scratch is too small: the program was compiled for another instruction set");
  // What is stored past the caches is not at hand for what follows, but where it follows in registers.
  if (is_any(epilogue) && plan.kernel != Kernel::matrix) plan.streams = false;
  const Set& set = *in_use().set;
  const Unit& unit = plan.by_pairs ? *set.pairs[plan.length] : *set.units[plan.length][int(type)];
  char* rest = static_cast<char*>(scratch->untyped_data());
  Scratch memory{rest, false, rest};
  int64_t packed = packed_bytes(role, plan);
  if (!frozen) memory.rest = rest + packed;
  FrozenCall frozen_call(frozen ? frozen->kernel : nullptr, second.untyped_data(), second.size_bytes(),
                         packed, memory);
  auto run = [&](const Parallel& parallel) {
    return unit.run(plan, type, role, p, first.untyped_data(), second.untyped_data(), result->untyped_data(),
                    memory, epilogue, parallel);
  };
  bool done = plan.threads > 1 && !frozen_call.is_first()
                  ? run(OnPool<ffi::ThreadPool>(&pool, plan.threads, plan.much))
                  : run(Parallel{in_the_caller, 1});
  if (done) frozen_call.done();
  return done ? ffi::Error::Success() : ffi::Error(ffi::ErrorCode::kResourceExhausted, NO_MEMORY);
}

}  // namespace
}  // namespace gconv

// --- what the library exports ------------------------------------------------------------------------------

// The operands, results and attributes of a call.
template <class Binding>
static auto with_arguments(Binding&& binding) {
  using namespace gconv;
  return std::move(binding)
      .template Arg<ffi::AnyBuffer>()
      .template Arg<ffi::AnyBuffer>()
      .RemainingArgs()
      .template Ret<ffi::AnyBuffer>()
      .template Ret<ffi::AnyBuffer>()
      .template Attr<int64_t>("role")
      .template Attr<Three>("input")
      .template Attr<Three>("output")
      .template Attr<Three>("window")
      .template Attr<Three>("strides")
      .template Attr<Three>("low")
      .template Attr<Three>("dilation")
      .template Attr<int64_t>("groups")
      .template Attr<int64_t>("channels")
      .template Attr<int64_t>("filters")
      .template Attr<bool>("plain")
      .template Attr<std::string_view>("kernel")
      .template Attr<int64_t>("parts")
      .template Attr<int64_t>("activation")
      .template Attr<double>("slope");
}

EXPORT XLA_FFI_Error* gconv_call(XLA_FFI_CallFrame* frame) {
  return gconv::guarded(frame, gconv::NO_MEMORY, [&] {
    static auto* const handler = with_arguments(ffi::Ffi::Bind().Ctx<ffi::ThreadPool>())
                                     .To([](auto... arguments) { return gconv::call(nullptr, arguments...); })
                                     .release();
    return handler->Call(frame);
  });
}

// The same call where the kernel operand is the same in every call of a program, and what makes its state.
EXPORT XLA_FFI_Error* gconv_frozen_call(XLA_FFI_CallFrame* frame) {
  return gconv::guarded(frame, gconv::NO_MEMORY, [&]() -> XLA_FFI_Error* {
    if (XLA_FFI_Error* error = gconv::Kept::make_known(frame)) return error;
    static auto* const handler =
        with_arguments(ffi::Ffi::Bind().Ctx<ffi::State<gconv::Kept>>().Ctx<ffi::ThreadPool>())
            .To(gconv::call)
            .release();
    return handler->Call(frame);
  });
}
EXPORT XLA_FFI_Error* gconv_frozen_state(XLA_FFI_CallFrame* frame) {
  return gconv::guarded(frame, gconv::NO_MEMORY, [&] { return gconv::Kept::make(frame); });
}

// The XLA FFI version of the headers that this was built with: major * 1000 + minor.
EXPORT int64_t gconv_ffi_version() { return XLA_FFI_API_MAJOR * 1000 + XLA_FFI_API_MINOR; }

// What a call is given: 3, since there is an epilogue among the attributes; 4, since arrays have the spatial
// axes of their own; 5, since results of half precision may be float32; 6, since a kernel may be frozen; 7,
// since batch norm's door sums over pixels; 8, since there may be a gate.
EXPORT int64_t gconv_interface() { return 8; }
