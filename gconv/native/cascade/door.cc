// The door to XLA of convolutions that follow each other: checks everything about a call.
//
// As in ffi.cc nothing here trusts its caller: what does not fit gives an error, never an access.

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <string>

#include "cascade/cascade.h"
#include "door.h"
#include "in_use.h"
#include "parallel.h"

namespace gconv {
namespace {

constexpr char NO_MEMORY[] = "gconv: out of memory for what lies between convolutions";
constexpr int NUMBERS = 24;  // of a link

using Kept = State<MOST_LINKS>;

bool has(const ffi::AnyBuffer& a, std::initializer_list<int64_t> shape, ffi::DataType type) {
  auto d = a.dimensions();
  return a.element_type() == type && std::equal(d.begin(), d.end(), shape.begin(), shape.end());
}

ffi::Error call(Kept* frozen, ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::RemainingArgs operands,
                ffi::Result<ffi::AnyBuffer> result, ffi::Span<const int64_t> numbers,
                ffi::Span<const double> slopes) {
  auto refuse = [](const std::string& why) {
    return ffi::Error::InvalidArgument("gconv: convolutions in a row: " + why);
  };
  if (!in_use().set)
    return refuse("this processor does not have the instruction set that GCONV_NATIVE_ISA names");
  Cascade c{};
  c.links = int(slopes.size());
  if (c.links < 2 || c.links > MOST_LINKS || int64_t(numbers.size()) != NUMBERS * c.links)
    return refuse("there must be two links or three, each of 24 numbers");
  ffi::DataType type = x.element_type(), wide = sums_of(type);
  if (!known(type, c.type)) return refuse("elements must be float32, float64, bfloat16 or float16");
  if (x.dimensions().size() != 4 || x.element_count() == 0)
    return refuse("x must have four axes and not be empty");
  c.element = int64_t(x.size_bytes() / x.element_count());

  size_t next = 0;
  auto operand = [&](std::initializer_list<int64_t> shape, ffi::DataType of) -> const void* {
    if (next >= operands.size()) return nullptr;
    auto a = operands.get<ffi::AnyBuffer>(next++);
    return a && has(*a, shape, of) ? a->untyped_data() : nullptr;
  };
  size_t kernel_bytes[MOST_LINKS];
  for (int i = 0; i < c.links; ++i) {
    Link& link = c.link[i];
    Problem& p = link.p;
    const int64_t* n = numbers.begin() + NUMBERS * i;
    int64_t* fields[] = {p.in, p.out, p.window, p.strides, p.low, p.dilation};
    for (int f = 0; f < 6; ++f, n += 3) std::copy(n, n + 3, fields[f]);
    p.batch = x.dimensions()[0], p.groups = n[0], p.channels = n[1], p.filters = n[2], p.plain = n[3] != 0,
    p.frozen = true;
    int64_t parts = n[4], activation = n[5];
    if (const char* why = check(p)) return refuse(why);
    if (p.in[0] != 1 || p.out[0] != 1 || p.window[0] != 1 || p.low[0] != 0)
      return refuse("the first of three axes must have size 1");
    bool follows = i == 0 || (p.in[1] == c.link[i - 1].p.out[1] && p.in[2] == c.link[i - 1].p.out[2] &&
                              p.groups * p.channels == c.link[i - 1].p.groups * c.link[i - 1].p.filters);
    if (!follows) return refuse("a link's source is not the result before it");
    if (activation < 0 || activation > LAST_ACTIVATION) return refuse("no activation has this number");
    bool is_last = i == c.links - 1;
    if (parts < 0 || parts > (is_last ? 7 : 3))
      return refuse("the parts must be a sum of 1, 2 and, in the last link, 4");
    int64_t filters = p.groups * p.filters;
    if (p.out[1] < 1 || p.out[2] < 1 || p.window[1] < 1 || p.window[2] < 1 || filters < 1 || p.channels < 1)
      return refuse("nothing may be empty");
    Epilogue& e = link.epilogue;
    e.activation = static_cast<Activation>(activation), e.slope = slopes[size_t(i)];
    bool fits = (link.w = operand({p.window[1], p.window[2], p.channels, filters}, type));
    if (parts & 1) fits &= bool(e.scale = operand({filters}, wide));
    if (parts & 2) fits &= bool(e.shift = operand({filters}, wide));
    if (parts & 4) fits &= bool(e.residual = operand({p.batch, p.out[1], p.out[2], filters}, type));
    if (!fits) return refuse("an operand is missing or does not fit");
    kernel_bytes[i] = size_t(taps_of(p) * p.channels * filters * c.element);
  }
  const Problem &one = c.link[0].p, &last = c.link[c.links - 1].p;
  if (next != operands.size()) return refuse("there are more operands than parts");
  if (!has(x, {one.batch, one.in[1], one.in[2], one.groups * one.channels}, type) ||
      !has(*result, {last.batch, last.out[1], last.out[2], last.groups * last.filters}, type))
    return refuse("a shape does not fit");

  choose_rows(c);
  auto plan = [](Type type, const Problem& p, Plan& found) {
    return plan_here(Role::y, type, p, 1, "", found);
  };
  if (const char* why = plan_links(c, plan)) return refuse(why);
  for (Link& link : c.link)
    link.unit = link.plan.by_pairs ? in_use().set->pairs[link.plan.length]
                                   : in_use().set->units[link.plan.length][int(c.type)];
  // A kernel that a plan packs is packed by the first stripe alone, or was by an earlier call.
  struct Part {
    std::optional<FrozenCall> frozen;
    Memory own;
  } parts[MOST_LINKS];
  bool is_first = false, all_packed = true;
  for (int i = 0; i < c.links; ++i) {
    Link& link = c.link[i];
    int64_t packed = packed_bytes(Role::y, link.plan);
    if (!packed) continue;
    if (frozen) {
      parts[i].frozen.emplace(&frozen->kernel[i], link.w, kernel_bytes[i], packed, link.memory);
      is_first |= parts[i].frozen->is_first();
    } else {
      parts[i].own = whole_lines_of_memory(packed);
      link.memory.packed = parts[i].own.get();
    }
    all_packed &= link.memory.is_packed;
  }
  void* to = result->untyped_data();
  if (!all_packed) {
    if (!run_first(c, x.untyped_data(), to)) return ffi::Error(ffi::ErrorCode::kResourceExhausted, NO_MEMORY);
    for (int i = 0; i < c.links; ++i) c.link[i].memory.is_packed = true;
    for (Part& part : parts)
      if (part.frozen) part.frozen->done();
  }
  bool done = is_first
                  ? run(c, x.untyped_data(), to, Parallel{in_the_caller, 1})
                  : run(c, x.untyped_data(), to, OnPool<ffi::ThreadPool>(&pool, pool.num_threads(), true));
  return done ? ffi::Error::Success() : ffi::Error(ffi::ErrorCode::kResourceExhausted, NO_MEMORY);
}

template <class Binding>
auto with_arguments(Binding&& binding) {
  return std::move(binding)
      .template Arg<ffi::AnyBuffer>()
      .RemainingArgs()
      .template Ret<ffi::AnyBuffer>()
      .template Attr<ffi::Span<const int64_t>>("numbers")
      .template Attr<ffi::Span<const double>>("slopes");
}

}  // namespace
}  // namespace gconv

EXPORT XLA_FFI_Error* gconv_cascade_call(XLA_FFI_CallFrame* frame) {
  using namespace gconv;
  return guarded(frame, NO_MEMORY, [&] {
    static auto* const handler = with_arguments(ffi::Ffi::Bind().Ctx<ffi::ThreadPool>())
                                     .To([](auto... arguments) { return call(nullptr, arguments...); })
                                     .release();
    return handler->Call(frame);
  });
}
EXPORT XLA_FFI_Error* gconv_frozen_cascade_call(XLA_FFI_CallFrame* frame) {
  using namespace gconv;
  return guarded(frame, NO_MEMORY, [&]() -> XLA_FFI_Error* {
    if (XLA_FFI_Error* error = Kept::make_known(frame)) return error;
    static auto* const handler =
        with_arguments(ffi::Ffi::Bind().Ctx<ffi::State<Kept>>().Ctx<ffi::ThreadPool>()).To(call).release();
    return handler->Call(frame);
  });
}
EXPORT XLA_FFI_Error* gconv_frozen_cascade_state(XLA_FFI_CallFrame* frame) {
  return gconv::guarded(frame, gconv::NO_MEMORY, [&] { return gconv::Kept::make(frame); });
}
