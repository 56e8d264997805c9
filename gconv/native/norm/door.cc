// The door to XLA of batch norm and of the mean over pixels: checks everything about a call and hands the
// buffers to the passes.
//
// As in ffi.cc nothing here trusts its caller: what does not fit gives an error, never an access.

#include <algorithm>
#include <cstring>
#include <string>

#include "door.h"
#include "in_use.h"
#include "norm/norm.h"
#include "parallel.h"

namespace gconv {
namespace {

const NormUnit* const UNITS[] = {
#ifdef __x86_64__
    &norm_avx512,
    &norm_avx2,
#endif
    &norm_baseline,
};

// The passes of the instruction set in use for a type, or nullptr.
RunPass passes_of(ffi::DataType type) {
  Type of;
  if (!in_use().set || !known(type, of)) return nullptr;
  const char* vectors = in_use().set->units[0][0]->vectors.set;
  for (const NormUnit* unit : UNITS)
    if (!std::strcmp(unit->set, vectors)) return unit->run[int(of)];
  return nullptr;
}

constexpr char NO_MEMORY[] = "gconv: out of memory for the lists that batch norm works with";
constexpr double SMALL = 1 << 15,
                 LONG = 1 << 20;  // numbers: for a thread of its own, and for a system call to wake it

ffi::Error call(ffi::ThreadPool pool, ffi::RemainingArgs arguments, ffi::RemainingRets results,
                int64_t pass_number, bool relu, bool residual, int64_t partitions) {
  auto refuse = [](const std::string& why) {
    return ffi::Error::InvalidArgument("gconv: batch norm: " + why);
  };
  if (pass_number < 0 || pass_number > 4)
    return refuse("the pass must be 0 (moments), 1 (apply), 2 (sums), 3 (backward) or 4 (totals)");
  Pass pass = static_cast<Pass>(pass_number);
  bool is_totals = pass == Pass::totals, of_x = pass == Pass::moments || is_totals,
       reduces = of_x || pass == Pass::sums;
  if (residual && (of_x || (pass != Pass::apply && !relu))) return refuse("this pass has no residual");
  size_t operands = of_x ? 1 : pass == Pass::apply ? 2 : pass == Pass::sums ? 3 : 4;
  size_t outputs = reduces || (pass == Pass::backward && residual) ? 2 : 1;
  if (arguments.size() != operands + residual || results.size() != outputs)
    return refuse("operands or results are missing");

  // Totals are of images with any number of spatial axes, as they are: XLA may copy what is reshaped for a
  // call.
  auto first = arguments.get<ffi::AnyBuffer>(0);
  if (!first || (is_totals ? first->dimensions().size() < 3 : first->dimensions().size() != 2))
    return refuse(is_totals ? "x must have three axes or more" : "x must have two axes");
  ffi::DataType type = first->element_type(), wide = sums_of(type);
  RunPass run = passes_of(type);
  if (!run)
    return refuse(
        "elements must be float32, float64, bfloat16 or float16, on an instruction set that is here");
  if (partitions < 1 || partitions > 4096) return refuse("partitions must lie in [1, 4096]");
  if (first->element_count() == 0) return refuse("x must not be empty");
  int64_t images = is_totals ? first->dimensions()[0] : 1, channels = first->dimensions().back();
  Norm p{int64_t(first->element_count()) / channels / images, channels, partitions, relu, images};

  auto has = [](const ffi::AnyBuffer& a, int64_t rows, int64_t columns, ffi::DataType of) {
    auto d = a.dimensions();
    return d.size() == 2 && d[0] == rows && d[1] == columns && a.element_type() == of;
  };
  bool fits = true;
  size_t next = 0;
  auto operand = [&](int64_t rows, ffi::DataType of) -> const void* {
    auto a = arguments.get<ffi::AnyBuffer>(next++);
    fits = fits && a && has(*a, rows, p.channels, of);
    return fits ? a->untyped_data() : nullptr;
  };
  NormBuffers b{};
  b.x = is_totals ? arguments.get<ffi::AnyBuffer>(next++)->untyped_data() : operand(p.rows, type);
  if (!of_x) b.factors = operand(3, wide);
  if (residual) b.residual = operand(p.rows, type);
  if (pass == Pass::sums || pass == Pass::backward) b.dy = operand(p.rows, type);
  if (pass == Pass::backward) b.terms = operand(2, wide);
  auto result = results.get<ffi::AnyBuffer>(0);
  int64_t results_of_channel = is_totals ? images : reduces ? 2 : p.rows;
  fits = fits && result && has(**result, results_of_channel, p.channels, reduces ? wide : type);
  if (!fits) return refuse("a shape or a type does not fit");
  b.result = (*result)->untyped_data();
  if (outputs == 2) {
    auto second = results.get<ffi::AnyBuffer>(1);
    if (!second) return refuse("operands or results are missing");
    if (reduces) {
      double sums = double(is_totals ? images : 2) * double(partitions) * double(p.channels);
      if (double((*second)->size_bytes()) < sizeof(double) * sums) return refuse("the scratch is too small");
      b.partial = static_cast<double*>((*second)->untyped_data());
    } else {
      if (!has(**second, p.rows, p.channels, type)) return refuse("a shape or a type does not fit");
      b.residual_result = (*second)->untyped_data();
    }
  }

  double work = double(images) * double(p.rows) * double(p.channels);
  int64_t threads = std::max<int64_t>(1, std::min<int64_t>(pool.num_threads(), int64_t(work / SMALL)));
  bool done = threads > 1 ? run(pass, p, b, OnPool<ffi::ThreadPool>(&pool, threads, work >= LONG))
                          : run(pass, p, b, Parallel{in_the_caller, 1});
  return done ? ffi::Error::Success() : ffi::Error(ffi::ErrorCode::kResourceExhausted, NO_MEMORY);
}

}  // namespace
}  // namespace gconv

EXPORT XLA_FFI_Error* gconv_norm_call(XLA_FFI_CallFrame* frame) {
  using namespace gconv;
  return guarded(frame, NO_MEMORY, [&] {
    static auto* const handler = ffi::Ffi::Bind()
                                     .Ctx<ffi::ThreadPool>()
                                     .RemainingArgs()
                                     .RemainingRets()
                                     .Attr<int64_t>("pass")
                                     .Attr<bool>("relu")
                                     .Attr<bool>("residual")
                                     .Attr<int64_t>("partitions")
                                     .To(call)
                                     .release();
    return handler->Call(frame);
  });
}
