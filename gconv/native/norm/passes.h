// The passes of norm.h.
//
// Rows of few channels are folded: so many rows are read as one row of whole vectors that their channels
// repeat in it. The rows that are left at the end, fewer than are folded, are read number by number.

#pragma once

#include "norm/norm.h"
#include "vectors/vector.h"
#include "vectors/work.h"

namespace gconv {
namespace {

// The array as the passes read it.
struct Folded {
  int64_t fold;    // rows that are one
  int64_t rows;    // of the folded rows
  int64_t length;  // numbers of a folded row
  int64_t tail;    // numbers that are left after them
};

template <class T>
Folded folded(const Norm& p) {
  int64_t lanes = LANES<Wide<T>>, fold = 1;
  if (p.channels < 4 * lanes)
    while (fold * p.channels % lanes) ++fold;
  return {fold, p.rows / fold, fold * p.channels, p.rows % fold * p.channels};
}

// A list of numbers with room for a whole last vector, zeros at first.
template <class A>
struct Numbers {
  List<A> list;
  A* data = nullptr;
  void make(int64_t size) {
    data = lines(list, size + 2 * LANES<A>);
    for (int64_t i = 0; i < size + LANES<A>; i += LANES<A>) store(data + i, Vector<A>{});
  }
  // `of` for each channel, as often as rows are folded.
  void repeat(const A* of, int64_t channels, int64_t fold) {
    make(channels * fold);
    for (int64_t i = 0; i < channels * fold; ++i) data[i] = of[i % channels];
  }
};

template <class T>
struct Factors {
  using A = Wide<T>;
  Numbers<A> mean, scale, bias;
  Factors(const void* factors, const Norm& p, const Folded& f) {
    const A* of = static_cast<const A*>(factors);
    mean.repeat(of, p.channels, f.fold), scale.repeat(of + p.channels, p.channels, f.fold);
    bias.repeat(of + 2 * p.channels, p.channels, f.fold);
  }
};

// One vector of a row, or its first `count` numbers: WHOLE is whether the vector is full.
template <bool WHOLE, class T>
ALWAYS_INLINE Vector<T> read(const T* from, int64_t count) {
  if constexpr (WHOLE)
    return load(from);
  else
    return load_first(from, count);
}
template <bool WHOLE, class T>
ALWAYS_INLINE void write(T* to, Vector<T> v, int64_t count) {
  if constexpr (WHOLE)
    store(to, v);
  else
    store_first(to, v, count);
}

// Calls body(whole, at, count) for the vectors of [first, last), of which the last may be in part.
template <class T, class F>
ALWAYS_INLINE void for_vectors(int64_t first, int64_t last, const F& body) {
  constexpr int64_t N = LANES<Wide<T>>;
  int64_t at = first;
  for (; at + N <= last; at += N) body(True{}, at, N);
  if (at < last) body(False{}, at, last - at);
}

// Calls body(rows of a tile, first row) for [first, last), in tiles of ROWS and of one.
template <int ROWS, class F>
ALWAYS_INLINE void for_tiles(int64_t first, int64_t last, const F& body) {
  int64_t row = first;
  for (; row + ROWS <= last; row += ROWS) body(Number<ROWS>{}, row);
  for (; row < last; ++row) body(Number<1>{}, row);
}

// --- one number or vector ----------------------------------------------------------------------------------

// relu, which keeps a NaN; and what of a cotangent passes it.
template <class V>
ALWAYS_INLINE V rectified(V z) {
  auto dropped = z <= V{};
  return (V)((decltype(dropped))z & ~dropped);
}
template <class V>
ALWAYS_INLINE V passed(V dy, V z) {
  auto kept = z > V{};
  return (V)((decltype(kept))dy & kept);
}

// --- sums over rows ----------------------------------------------------------------------------------------

constexpr int64_t BLOCK = 512;  // channels whose sums are formed together

// Calls body(partition, first and last folded row, numbers of the tail that follows, first and last number)
// for every part of the array whose sums are formed together. Partitions count on from image to image.
template <class T, class F>
void for_parts(const Norm& p, const Folded& f, const Parallel& parallel, const F& body) {
  int64_t blocks = f.fold > 1 ? 1 : ceil_div(f.length, BLOCK), length = ceil_div(f.length, blocks);
  length = ceil_div(length, LANES<Wide<T>>) * LANES<Wide<T>>;
  int64_t work = ceil_div(f.rows, p.partitions) * ceil_div(length, LANES<Wide<T>>);
  for_each(parallel, p.images * p.partitions * blocks, work, [&](int64_t unit) {
    int64_t all = unit / blocks, part = all % p.partitions, at = unit % blocks * length;
    if (at >= f.length) return;
    int64_t first = f.rows * part / p.partitions, last = f.rows * (part + 1) / p.partitions;
    body(all, first, last, part == p.partitions - 1 ? f.tail : 0, at, minimum(at + length, f.length));
  });
}

// Two results of each channel from the partial ones, on all threads.
template <class F>
void for_channels(const Norm& p, const Parallel& parallel, const F& body) {
  for_ranges(parallel, p.channels, p.partitions, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) body(c);
  });
}

// Each part subtracts a number near its mean first, so that large means cost no digits.
template <class T>
void moments(const Norm& p, const NormBuffers& b, const Parallel& parallel) {
  using A = Wide<T>;
  using V = Vector<T>;
  constexpr int ROWS = 8;
  const T* x = static_cast<const T*>(b.x);
  A* result = static_cast<A*>(b.result);
  double *means = b.partial, *squares = b.partial + p.partitions * p.channels;
  Folded f = folded<T>(p);
  for_parts<T>(p, f, parallel,
               [&](int64_t part, int64_t first, int64_t last, int64_t tail, int64_t from, int64_t to) {
                 Numbers<A> near, sum, square;
                 near.make(to - from), sum.make(to - from), square.make(to - from);
                 int64_t pilots = minimum(ROWS, last - first);
                 for (int64_t i = 0; i < to - from; ++i) {
                   A total = pilots ? 0 : i < tail ? value(x[f.rows * f.length + i]) : 0;
                   for (int64_t row = first; row < first + pilots; ++row)
                     total += value(x[row * f.length + from + i]);
                   total /= (A)maximum(pilots, 1);
                   near.data[i] = total - total == 0 ? total : 0;  // of infinities only plain sums are right
                 }
                 for_tiles<ROWS>(first, last, [&](auto rows, int64_t row) {
                   for_vectors<T>(from, to, [&](auto whole, int64_t at, int64_t count) {
                     V k = load(near.data + at - from), s = load(sum.data + at - from),
                       q = load(square.data + at - from);
                     V tile = {}, tile_squares = {};
                     UNROLL for (int r = 0; r < decltype(rows)::value; ++r) {
                       V d = read<decltype(whole)::value>(x + (row + r) * f.length + at, count) - k;
                       tile += d, tile_squares += d * d;
                     }
                     store(sum.data + at - from, s + tile), store(square.data + at - from, q + tile_squares);
                   });
                 });
                 for (int64_t i = 0; i < tail; ++i) {
                   A d = value(x[f.rows * f.length + i]) - near.data[i];
                   sum.data[i] += d, square.data[i] += d * d;
                 }
                 int64_t channels = f.fold > 1 ? p.channels : to - from;
                 for (int64_t c = 0; c < channels; ++c) {
                   double count = 0, total = 0;
                   for (int64_t i = c; i < to - from; i += channels) {
                     double n = double(last - first + (i < tail));
                     count += n, total += n * near.data[i] + sum.data[i];
                   }
                   double mean = count ? total / count : 0, about = 0;
                   for (int64_t i = c; i < to - from; i += channels) {
                     double n = double(last - first + (i < tail)), s = sum.data[i];
                     if (n == 0) continue;
                     double own = square.data[i] - s * s / n, off = near.data[i] + s / n - mean;
                     about += (own < 0 ? 0 : own) + n * off * off;
                   }
                   means[part * p.channels + from + c] = mean, squares[part * p.channels + from + c] = about;
                 }
               });
  auto rows_of = [&](int64_t part) {
    int64_t first = f.rows * part / p.partitions, last = f.rows * (part + 1) / p.partitions;
    return double((last - first) * f.fold + (part == p.partitions - 1 ? f.tail / p.channels : 0));
  };
  for_channels(p, parallel, [&](int64_t c) {
    double total = 0, about = 0;
    for (int64_t i = 0; i < p.partitions; ++i) total += rows_of(i) * means[i * p.channels + c];
    double mean = total / double(p.rows);
    for (int64_t i = 0; i < p.partitions; ++i) {
      double off = means[i * p.channels + c] - mean;
      about += squares[i * p.channels + c] + rows_of(i) * off * off;
    }
    result[c] = A(mean), result[p.channels + c] = A(about / double(p.rows));
  });
}

template <class T, bool RELU>
void sums(const Norm& p, const NormBuffers& b, const Parallel& parallel) {
  using A = Wide<T>;
  using V = Vector<T>;
  constexpr int ROWS = 4;
  const T *x = static_cast<const T*>(b.x), *dy = static_cast<const T*>(b.dy),
          *residual = static_cast<const T*>(b.residual);
  A* result = static_cast<A*>(b.result);
  double *plain = b.partial, *weighted = b.partial + p.partitions * p.channels;
  Folded f = folded<T>(p);
  Factors<T> k(b.factors, p, f);
  for_parts<T>(
      p, f, parallel, [&](int64_t part, int64_t first, int64_t last, int64_t tail, int64_t from, int64_t to) {
        Numbers<A> sum, product;
        sum.make(to - from), product.make(to - from);
        for_tiles<ROWS>(first, last, [&](auto rows, int64_t row) {
          for_vectors<T>(from, to, [&](auto whole, int64_t at, int64_t count) {
            constexpr bool WHOLE = decltype(whole)::value;
            V mean = load(k.mean.data + at), scale = load(k.scale.data + at), bias = load(k.bias.data + at);
            V tile = {}, products = {};
            UNROLL for (int r = 0; r < decltype(rows)::value; ++r) {
              int64_t i = (row + r) * f.length + at;
              V d = read<WHOLE>(x + i, count) - mean, dz = read<WHOLE>(dy + i, count);
              if constexpr (RELU) {
                V z = d * scale + bias;
                if (residual) z += read<WHOLE>(residual + i, count);
                dz = passed(dz, z);
              }
              tile += dz, products += dz * d;
            }
            store(sum.data + at - from, load(sum.data + at - from) + tile);
            store(product.data + at - from, load(product.data + at - from) + products);
          });
        });
        for (int64_t i = 0; i < tail; ++i) {
          int64_t at = f.rows * f.length + i;
          A d = value(x[at]) - k.mean.data[i], dz = value(dy[at]);
          if constexpr (RELU) {
            A z = d * k.scale.data[i] + k.bias.data[i];
            if (residual) z += value(residual[at]);
            dz = z > 0 ? dz : 0;
          }
          sum.data[i] += dz, product.data[i] += dz * d;
        }
        int64_t channels = f.fold > 1 ? p.channels : to - from;
        for (int64_t c = 0; c < channels; ++c) {
          double s = 0, q = 0;
          for (int64_t i = c; i < to - from; i += channels) s += sum.data[i], q += product.data[i];
          plain[part * p.channels + from + c] = s, weighted[part * p.channels + from + c] = q;
        }
      });
  for_channels(p, parallel, [&](int64_t c) {
    double s = 0, q = 0;
    for (int64_t i = 0; i < p.partitions; ++i)
      s += plain[i * p.channels + c], q += weighted[i * p.channels + c];
    result[c] = A(s), result[p.channels + c] = A(q);
  });
}

template <class T>
void totals(const Norm& p, const NormBuffers& b, const Parallel& parallel) {
  using A = Wide<T>;
  constexpr int ROWS = 8;
  A* result = static_cast<A*>(b.result);
  double* partial = b.partial;
  Folded f = folded<T>(p);
  for_parts<T>(p, f, parallel,
               [&](int64_t part, int64_t first, int64_t last, int64_t tail, int64_t from, int64_t to) {
                 const T* x = static_cast<const T*>(b.x) + part / p.partitions * p.rows * p.channels;
                 Numbers<A> sum;
                 sum.make(to - from);
                 for_tiles<ROWS>(first, last, [&](auto rows, int64_t row) {
                   for_vectors<T>(from, to, [&](auto whole, int64_t at, int64_t count) {
                     Vector<T> tile = {};
                     UNROLL for (int r = 0; r < decltype(rows)::value; ++r)
                       tile += read<decltype(whole)::value>(x + (row + r) * f.length + at, count);
                     store(sum.data + at - from, load(sum.data + at - from) + tile);
                   });
                 });
                 for (int64_t i = 0; i < tail; ++i) sum.data[i] += value(x[f.rows * f.length + i]);
                 int64_t channels = f.fold > 1 ? p.channels : to - from, at = part * p.channels + from;
                 for (int64_t i = channels; i < to - from; ++i) sum.data[i % channels] += sum.data[i];
                 for (int64_t c = 0; c < channels; ++c) {
                   if (p.partitions == 1)
                     result[at + c] = sum.data[c];
                   else
                     partial[at + c] = sum.data[c];
                 }
               });
  if (p.partitions == 1) return;
  for_each(parallel, p.images, p.partitions * p.channels / LANES<A>, [&](int64_t image) {
    for (int64_t c = 0; c < p.channels; ++c) {
      double s = 0;
      for (int64_t part = 0; part < p.partitions; ++part)
        s += partial[(image * p.partitions + part) * p.channels + c];
      result[image * p.channels + c] = A(s);
    }
  });
}

// --- number by number --------------------------------------------------------------------------------------

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
        V d = read<WHOLE>(x + i, count) - mean, dz = read<WHOLE>(dy + i, count);
        if constexpr (RELU) {
          V z = d * scale + bias;
          if (residual) z += read<WHOLE>(residual + i, count);
          dz = passed(dz, z);
          if (residual) write<WHOLE>(dresidual + i, dz, count);
        }
        write<WHOLE>(dx + i, scale * dz + (factor * d + term), count);
      }
    });
  });
  for (int64_t i = 0; i < f.tail; ++i) {
    int64_t at = f.rows * f.length + i;
    A d = value(x[at]) - k.mean.data[i], dz = value(dy[at]);
    if constexpr (RELU) {
      A z = d * k.scale.data[i] + k.bias.data[i];
      if (residual) z += value(residual[at]);
      dz = z > 0 ? dz : 0;
      if (residual) dresidual[at] = rounded<T>(dz);
    }
    dx[at] = rounded<T>(k.scale.data[i] * dz + (slope.data[i] * d + constant.data[i]));
  }
}

}  // namespace
}  // namespace gconv
