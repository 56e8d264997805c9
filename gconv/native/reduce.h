// Role w sums over every pixel of the batch, so the pixels are cut in two levels, both fixed by the shapes alone:
//
//   patch       some rows of y, or a stretch of a long one: small enough to stay in the nearest caches while all taps pass over it
//   partition   a run of patches with a partial sum of its own, which one thread at a time adds to; at the end the partial sums
//               are added in their order
//
// so the result does not depend on how many threads there are.

#pragma once

#include "work.h"

namespace gconv {
namespace {

struct Segment {  // of a row of y, and the row of x that one tap of the outer axes gives it
  int64_t x, y;   // offsets of the pixels [0] of these rows
  int64_t pixel;  // of the segment's first pixel in its patch
};

// Enough to keep threads busy, together with the blocks of the result that they can share, but each with so much to do that its
// sums are worth adding up, and no more memory than a quarter of the operands or a megabyte.
int64_t partitions_of(const Problem& p, int64_t units, int64_t partial_size, int64_t element, int64_t blocks = 1) {
  constexpr int64_t WORTH = 1 << 15;  // multiply-adds
  int64_t in = p.in[0] * p.in[1] * p.in[2] * p.groups * p.channels, out = p.out[0] * p.out[1] * p.out[2] * p.groups * p.filters;
  int64_t room = maximum(p.batch * (in + out) / 4, (1 << 20) / element) / maximum(partial_size, 1);
  double work = double(p.batch) * double(out) * double(p.channels);
  for (int64_t taps : p.window) work *= double(taps);
  int64_t most = work < 16 * WORTH ? ceil_div(int64_t(work), WORTH) : 16;
  return maximum(1, minimum(minimum(units, most), maximum(room, minimum(4, ceil_div(64, blocks)))));
}

struct Patches {
  const Problem& p;
  int64_t rows, columns;                   // of y in a patch
  int64_t across, count, partitions;       // patches along a row, in all
  int64_t in_channels, out_channels;

  Patches(const Problem& p, int64_t pixels, int64_t partial_size, int64_t element, int64_t blocks = 1) : p(p) {
    in_channels = p.groups * p.channels, out_channels = p.groups * p.filters;
    columns = maximum(1, minimum(p.out[2], pixels));
    int64_t all = p.batch * p.out[0] * p.out[1];
    rows = columns < p.out[2] ? 1 : maximum(1, minimum(pixels / columns, all));
    across = ceil_div(p.out[2], columns);
    rows = maximum(1, ceil_div(all, maximum(1, ceil_div(all, rows))));  // the same number of patches, as even as can be
    count = p.out[2] ? ceil_div(all, rows) * across : 0;
    partitions = partitions_of(p, count, partial_size, element, blocks);
  }
  int64_t first_patch(int64_t partition) const { return count * partition / partitions; }

  int64_t first_row(int64_t patch) const { return patch / across * rows; }
  int64_t rows_in(int64_t patch) const { return minimum(rows, p.batch * p.out[0] * p.out[1] - first_row(patch)); }
  int64_t first_column(int64_t patch) const { return patch % across * columns; }
  int64_t columns_in(int64_t patch) const { return minimum(columns, p.out[2] - first_column(patch)); }

  // The rows of a patch that find a row of x at the outer taps (d, h).
  void segments(int64_t patch, int64_t d, int64_t h, List<Segment>& found) const {
    found.size = 0;
    int64_t first = first_row(patch), count = rows_in(patch), wide = columns_in(patch);
    int64_t oh = first % p.out[1], od = first / p.out[1] % p.out[0], n = first / p.out[1] / p.out[0];
    for (int64_t i = 0; i < count; ++i) {
      int64_t ih = oh * p.strides[1] + h * p.dilation[1] - p.low[1], id = od * p.strides[0] + d * p.dilation[0] - p.low[0];
      if (ih >= 0 && ih < p.in[1] && id >= 0 && id < p.in[0])
        found.push({((n * p.in[0] + id) * p.in[1] + ih) * p.in[2] * in_channels, (first + i) * p.out[2] * out_channels, i * wide});
      if (++oh < p.out[1]) continue;
      oh = 0;
      if (++od == p.out[0]) od = 0, ++n;
    }
  }

  // The columns, from one to the other, that find a pixel of x at the tap w of the last axis.
  void columns_of(int64_t patch, int64_t w, int64_t& from, int64_t& to) const {
    int64_t first = first_column(patch), source = w * p.dilation[2] - p.low[2];  // of column 0
    from = maximum(first, -floor_div(source, p.strides[2]));
    to = minimum(first + columns_in(patch), floor_div(p.in[2] - 1 - source, p.strides[2]) + 1);
    to = maximum(from, to);
  }
};

}  // namespace
}  // namespace gconv
