// What the doors to XLA and to Python share.

#pragma once

#include "xla/ffi/api/c_api.h"

// Of the library's symbols only its C functions are seen from outside.
#define EXPORT extern "C" __attribute__((visibility("default")))

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

}  // namespace gconv
