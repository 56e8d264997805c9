// Role w sums over every pixel of the batch, so the pixels are cut in two levels, both fixed by the shapes
// alone:
//
//   stretch     some rows of y, or a part of a long one: small enough to stay in the nearest caches while all
//   taps
//               pass over it
//   partition   some stretches with a partial sum of their own, which one thread at a time adds to; at the
//   end the
//               partial sums are added in their order
//
// so the result does not depend on how many threads there are.

#pragma once

#include "plan.h"
#include "vectors/elements.h"
#include "vectors/work.h"

namespace gconv {
namespace {

struct RowPair {  // a row of a stretch of y, and the row of x that one tap of the outer axes gives it
  int64_t x, y;   // offsets of the pixels [0] of these rows
  int64_t pixel;  // of the row's first pixel in its stretch
};

struct Stretches {
  const Plan& plan;
  const Problem& p;
  int64_t across;  // stretches along a row
  int64_t in_channels, out_channels;

  Stretches(const Plan& plan, const Problem& p)
      : plan(plan), p(p), across(ceil_div(p.out[2], plan.stretch_columns)),
        in_channels(p.groups * p.channels), out_channels(p.groups * p.filters) {}
  int64_t first_of(int64_t partition) const { return plan.stretches * partition / plan.partitions; }

  int64_t first_row(int64_t stretch) const { return stretch / across * plan.stretch_rows; }
  int64_t rows_in(int64_t stretch) const {
    return minimum(plan.stretch_rows, p.batch * p.out[0] * p.out[1] - first_row(stretch));
  }
  int64_t first_column(int64_t stretch) const { return stretch % across * plan.stretch_columns; }
  int64_t columns_in(int64_t stretch) const {
    return minimum(plan.stretch_columns, p.out[2] - first_column(stretch));
  }

  // The rows of a stretch that find a row of x at the outer taps (d, h).
  void rows_of(int64_t stretch, int64_t d, int64_t h, List<RowPair>& found) const {
    found.size = 0;
    int64_t first = first_row(stretch), count = rows_in(stretch), wide = columns_in(stretch);
    int64_t oh = first % p.out[1], od = first / p.out[1] % p.out[0], n = first / p.out[1] / p.out[0];
    for (int64_t i = 0; i < count; ++i) {
      int64_t ih = oh * p.strides[1] + h * p.dilation[1] - p.low[1],
              id = od * p.strides[0] + d * p.dilation[0] - p.low[0];
      if (ih >= 0 && ih < p.in[1] && id >= 0 && id < p.in[0])
        found.push({((n * p.in[0] + id) * p.in[1] + ih) * p.in[2] * in_channels,
                    (first + i) * p.out[2] * out_channels, i * wide});
      if (++oh < p.out[1]) continue;
      oh = 0;
      if (++od == p.out[0]) od = 0, ++n;
    }
  }

  // The columns, from one to the other, that find a pixel of x at the tap w of the last axis.
  void columns_of(int64_t stretch, int64_t w, int64_t& from, int64_t& to) const {
    int64_t first = first_column(stretch), source = w * p.dilation[2] - p.low[2];  // of column 0
    from = maximum(first, -floor_div(source, p.strides[2]));
    to = minimum(first + columns_in(stretch), floor_div(p.in[2] - 1 - source, p.strides[2]) + 1);
    to = maximum(from, to);
  }
};

}  // namespace
}  // namespace gconv
