// What the doors to XLA and to Python share.

#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "frozen.h"
#include "problem.h"
#include "xla/ffi/api/c_api.h"
#include "xla/ffi/api/ffi.h"

// Of the library's symbols only its C functions are seen from outside.
#define EXPORT extern "C" __attribute__((visibility("default")))

namespace ffi = xla::ffi;

namespace gconv {

// Nothing may be thrown through a C function: what is, is std::bad_alloc, which `no_memory` says in words.
template <class F>
XLA_FFI_Error* guarded(XLA_FFI_CallFrame* frame, const char* no_memory, const F& f) try {
  return f();
} catch (...) {
  XLA_FFI_Error_Create_Args error{};
  error.struct_size = XLA_FFI_Error_Create_Args_STRUCT_SIZE;
  error.message = no_memory;
  error.errc = XLA_FFI_Error_Code_RESOURCE_EXHAUSTED;
  return frame->api->XLA_FFI_Error_Create(&error);
}

// False where kernels take no such elements.
inline bool known(ffi::DataType from, Type& to) {
  switch (from) {
    case ffi::DataType::F32: to = Type::f32; return true;
    case ffi::DataType::F64: to = Type::f64; return true;
    case ffi::DataType::BF16: to = Type::bf16; return true;
    case ffi::DataType::F16: to = Type::f16; return true;
    default: return false;
  }
}
inline ffi::DataType sums_of(ffi::DataType type) {
  return type == ffi::DataType::F64 ? type : ffi::DataType::F32;
}

// What XLA keeps for a call of a compiled program, whose COUNT kernels are frozen.
template <int COUNT>
struct State {
  Frozen kernel[COUNT];

  static inline ffi::TypeId id = XLA_FFI_UNKNOWN_TYPE_ID;
  static inline const ffi::TypeInfo INFO = ffi::MakeTypeInfo<State>();

  // Makes the type known to XLA, once: with the first call, by which XLA asks what a handler needs when it is
  // registered. (Registered by Python before there is a backend, it would come after the handlers.)
  static XLA_FFI_Error* make_known(XLA_FFI_CallFrame* frame) {
    static std::mutex mutex;
    std::lock_guard<std::mutex> lock(mutex);
    static const std::string name = "gconv_frozen_" + std::to_string(COUNT);
    return id.type_id ? nullptr : ffi::Ffi::RegisterTypeId(frame->api, name, &id, &INFO);
  }

  // The handler that makes one, when a program is loaded.
  static XLA_FFI_Error* make(XLA_FFI_CallFrame* frame) {
    if (XLA_FFI_Error* error = make_known(frame)) return error;
    static auto* const handler = ffi::Ffi::Bind<ffi::ExecutionStage::kInstantiate>()
                                     .Attrs()
                                     .To([](ffi::Dictionary) -> ffi::ErrorOr<std::unique_ptr<State>> {
                                       return std::make_unique<State>();
                                     })
                                     .release();
    return handler->Call(frame);
  }
};

}  // namespace gconv
