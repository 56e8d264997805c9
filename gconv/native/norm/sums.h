// The passes of norm.h that add up over rows: moments, sums and totals. Partial sums, of parts of the rows
// that the shape alone decides, are added up in the same order on any number of threads.

#pragma once

#include "norm/folded.h"

namespace gconv {
namespace {

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
              V d = read<WHOLE>(x + i, count) - mean;
              V more = residual ? read<WHOLE>(residual + i, count) : V{};
              V dz = cotangent<RELU>(read<WHOLE>(dy + i, count), d * scale + bias + more);
              tile += dz, products += dz * d;
            }
            store(sum.data + at - from, load(sum.data + at - from) + tile);
            store(product.data + at - from, load(product.data + at - from) + products);
          });
        });
        for (int64_t i = 0; i < tail; ++i) {
          int64_t at = f.rows * f.length + i;
          A d = value(x[at]) - k.mean.data[i];
          A more = residual ? value(residual[at]) : 0;
          A dz = cotangent<RELU>(value(dy[at]), d * k.scale.data[i] + k.bias.data[i] + more);
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

}  // namespace
}  // namespace gconv
