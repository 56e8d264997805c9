// The passes of norm.h that go number by number: apply and backward.

#pragma once

#include "norm/folded.h"

namespace gconv {
namespace {

// Calls body(rows of a tile, first row) for all folded rows, on all threads.
template <class T, int ROWS, class F>
void for_all_rows(const Folded& f, const Parallel& parallel, const F& body) {
  int64_t tiles = ceil_div(f.rows, ROWS);
  for_ranges(parallel, tiles, ROWS * ceil_div(f.length, LANES<Wide<T>>), [&](int64_t first, int64_t last) {
    for_tiles<ROWS>(first * ROWS, minimum(last * ROWS, f.rows), body);
  });
}

template <class T, bool RELU>
void apply(const Norm& p, const NormBuffers& b, const Parallel& parallel) {
  using A = Wide<T>;
  using V = Vector<T>;
  constexpr int ROWS = 4;
  const T *x = static_cast<const T*>(b.x), *residual = static_cast<const T*>(b.residual);
  T* y = static_cast<T*>(b.result);
  Folded f = folded<T>(p);
  Factors<T> k(b.factors, p, f);
  for_all_rows<T, ROWS>(f, parallel, [&](auto rows, int64_t row) {
    for_vectors<T>(0, f.length, [&](auto whole, int64_t at, int64_t count) {
      constexpr bool WHOLE = decltype(whole)::value;
      V mean = load(k.mean.data + at), scale = load(k.scale.data + at), bias = load(k.bias.data + at);
      UNROLL for (int r = 0; r < decltype(rows)::value; ++r) {
        int64_t i = (row + r) * f.length + at;
        V z = (read<WHOLE>(x + i, count) - mean) * scale + bias;
        if (residual) z += read<WHOLE>(residual + i, count);
        if constexpr (RELU) z = rectified(z);
        write<WHOLE>(y + i, z, count);
      }
    });
  });
  for (int64_t i = 0; i < f.tail; ++i) {
    int64_t at = f.rows * f.length + i;
    A z = (value(x[at]) - k.mean.data[i]) * k.scale.data[i] + k.bias.data[i];
    if (residual) z += value(residual[at]);
    y[at] = rounded<T>(RELU && z <= 0 ? 0 : z);
  }
}

template <class T, bool RELU>
void backward(const Norm& p, const NormBuffers& b, const Parallel& parallel) {
  using A = Wide<T>;
  using V = Vector<T>;
  constexpr int ROWS = 4;
  const T *x = static_cast<const T*>(b.x), *dy = static_cast<const T*>(b.dy),
          *residual = static_cast<const T*>(b.residual);
  T *dx = static_cast<T*>(b.result), *dresidual = static_cast<T*>(b.residual_result);
  Folded f = folded<T>(p);
  Factors<T> k(b.factors, p, f);
  Numbers<A> constant, slope;
  constant.repeat(static_cast<const A*>(b.terms), p.channels, f.fold);
  slope.repeat(static_cast<const A*>(b.terms) + p.channels, p.channels, f.fold);
  for_all_rows<T, ROWS>(f, parallel, [&](auto rows, int64_t row) {
    for_vectors<T>(0, f.length, [&](auto whole, int64_t at, int64_t count) {
      constexpr bool WHOLE = decltype(whole)::value;
      V mean = load(k.mean.data + at), scale = load(k.scale.data + at), bias = load(k.bias.data + at);
      V term = load(constant.data + at), factor = load(slope.data + at);
      UNROLL for (int r = 0; r < decltype(rows)::value; ++r) {
        int64_t i = (row + r) * f.length + at;
        V d = read<WHOLE>(x + i, count) - mean;
        V more = residual ? read<WHOLE>(residual + i, count) : V{};
        V dz = cotangent<RELU>(read<WHOLE>(dy + i, count), d * scale + bias + more);
        if (RELU && residual) write<WHOLE>(dresidual + i, dz, count);
        write<WHOLE>(dx + i, scale * dz + (factor * d + term), count);
      }
    });
  });
  for (int64_t i = 0; i < f.tail; ++i) {
    int64_t at = f.rows * f.length + i;
    A d = value(x[at]) - k.mean.data[i];
    A more = residual ? value(residual[at]) : 0;
    A dz = cotangent<RELU>(value(dy[at]), d * k.scale.data[i] + k.bias.data[i] + more);
    if (RELU && residual) dresidual[at] = rounded<T>(dz);
    dx[at] = rounded<T>(k.scale.data[i] * dz + (slope.data[i] * d + constant.data[i]));
  }
}

}  // namespace
}  // namespace gconv
