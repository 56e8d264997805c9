// What follows a convolution in a network, and a gate before it, each part optional:
//
//   activation(scale * convolution(gate * sources) + shift + residual)

#pragma once

#include <cstdint>

namespace gconv {

// In the order of gconv/fusion/activations.py, after none.
enum class Activation : int64_t {
  none,
  relu,
  relu6,
  leaky_relu,
  sigmoid,
  silu,
  hard_sigmoid,
  hard_silu,
  tanh,
  gelu,
  gelu_exact
};
constexpr int64_t LAST_ACTIVATION = int64_t(Activation::gelu_exact);

struct Epilogue {
  // By channel, in the type that sums are formed in, or nullptr.
  const void *scale = nullptr, *shift = nullptr;
  const void* residual = nullptr;  // like the result, or nullptr
  const void* gate = nullptr;      // by image and channel of the sources, in the type of sums, or nullptr
  Activation activation = Activation::none;
  double slope = 0;  // of leaky_relu
};

namespace {  // compiled once per instruction set (problem.h)

// Whether anything follows.
inline bool is_any(const Epilogue& e) {
  return e.scale || e.shift || e.residual || e.activation != Activation::none;
}

}  // namespace

}  // namespace gconv
