// Random problems of batch norm under sanitizers: every pass of every unit in buffers that end where their
// numbers end, and the sums of float32 and float64, also over pixels, against plain loops. `make sanitize`
// runs it.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "norm/norm.h"
#include "processor.h"

namespace gconv {
namespace {

std::mt19937 generator(1);

int pick(int least, int most) { return std::uniform_int_distribution<int>(least, most)(generator); }

struct Tested {
  const NormUnit* unit;
  int type;
  bool here;
  int bytes;       // of an element
  int wide_bytes;  // of the type that sums are formed in
};

#define TESTED(unit, here) \
  {&unit, 0, here, 4, 4}, {&unit, 1, here, 8, 8}, {&unit, 2, here, 2, 4}, { &unit, 3, here, 2, 4 }

const Tested ALL[] = {
#ifdef __x86_64__
    TESTED(norm_avx512, has_avx512()),
    TESTED(norm_avx2, has_avx2()),
#endif
    TESTED(norm_baseline, true),
};

// One thread, in ranges as other threads would leave them.
bool in_parts(const Parallel&, int64_t units, int64_t grain, Parallel::Body body, void* argument) {
  for (int64_t first = 0, last; first < units; first = last) {
    last = std::min(units, first + std::max<int64_t>(1, grain / 7));
    if (!body(argument, first, last)) return false;
  }
  return true;
}

const Parallel PARALLEL{in_parts, 3};

// So many numbers near one, whatever the type: a sign and an exponent that fit, and any mantissa.
std::vector<unsigned char> numbers(int64_t count, int bytes) {
  std::vector<unsigned char> made(size_t(count * bytes));
  for (size_t i = 0; i < made.size(); ++i)
    made[i] = (unsigned char)((i + 1) % bytes == 0 ? 0x3f : pick(0, 127));
  return made;
}

template <class A>
bool are_moments(const Norm& p, const void* array, const void* result) {
  const A *x = static_cast<const A*>(array), *found = static_cast<const A*>(result);
  double limit = sizeof(A) == 4 ? 1e-5 : 1e-12;
  for (int64_t c = 0; c < p.channels; ++c) {
    double mean = 0, var = 0;
    for (int64_t row = 0; row < p.rows; ++row) mean += x[row * p.channels + c] / double(p.rows);
    for (int64_t row = 0; row < p.rows; ++row)
      var += std::pow(x[row * p.channels + c] - mean, 2) / double(p.rows);
    if (std::fabs(found[c] - mean) > limit * 4 || std::fabs(found[p.channels + c] - var) > limit * 4)
      return false;
  }
  return true;
}

template <class A>
bool are_totals(const Norm& p, const void* array, const void* result) {
  const A *x = static_cast<const A*>(array), *found = static_cast<const A*>(result);
  double limit = (sizeof(A) == 4 ? 1e-5 : 1e-12) * double(p.rows);
  for (int64_t image = 0; image < p.images; ++image)
    for (int64_t c = 0; c < p.channels; ++c) {
      double sum = 0;
      for (int64_t row = 0; row < p.rows; ++row) sum += x[(image * p.rows + row) * p.channels + c];
      if (!(std::fabs(found[image * p.channels + c] - sum) <= limit)) return false;
    }
  return true;
}

// The array cut into images of so many rows that the last ones may be left over.
bool sums_over_pixels(const Tested& tested, const Norm& whole) {
  Norm p = whole;
  p.images = pick(1, int(std::min<int64_t>(whole.rows, 5))), p.rows = whole.rows / p.images;
  auto x = numbers(p.images * p.rows * p.channels, tested.bytes),
       sums = numbers(p.images * p.channels, tested.wide_bytes);
  std::vector<double> partial(size_t(p.images * p.partitions * p.channels));
  NormBuffers b{};
  b.x = x.data(), b.result = sums.data(), b.partial = partial.data();
  if (!tested.unit->run[tested.type](Pass::totals, p, b, PARALLEL)) return false;
  if (tested.bytes == 2) return true;
  return tested.bytes == 4 ? are_totals<float>(p, x.data(), sums.data())
                           : are_totals<double>(p, x.data(), sums.data());
}

bool runs(const Tested& tested, const Norm& p, bool adds) {
  int64_t size = p.rows * p.channels;
  auto x = numbers(size, tested.bytes), residual = numbers(size, tested.bytes),
       dy = numbers(size, tested.bytes);
  auto y = dy, dresidual = dy;
  auto factors = numbers(3 * p.channels, tested.wide_bytes),
       terms = numbers(2 * p.channels, tested.wide_bytes), sums = terms;
  std::vector<double> partial(size_t(2 * p.partitions * p.channels));
  for (Pass pass : {Pass::sums, Pass::apply, Pass::backward, Pass::moments}) {
    bool reduces = pass == Pass::moments || pass == Pass::sums;
    NormBuffers b{};
    b.x = x.data(), b.factors = factors.data(), b.dy = dy.data(), b.terms = terms.data();
    b.result = reduces ? sums.data() : y.data(), b.partial = partial.data();
    if (adds) b.residual = residual.data(), b.residual_result = dresidual.data();
    if (!tested.unit->run[tested.type](pass, p, b, PARALLEL)) return false;
  }
  if (tested.bytes == 2) return true;
  return tested.bytes == 4 ? are_moments<float>(p, x.data(), sums.data())
                           : are_moments<double>(p, x.data(), sums.data());
}

}  // namespace
}  // namespace gconv

int main() {
  using namespace gconv;
  int count = 0;
  for (int i = 0; i < 3000; ++i)
    for (const Tested& tested : ALL) {
      if (!tested.here || pick(0, 11)) continue;
      Norm p{pick(0, 3) ? pick(1, 40) : pick(1, 700), pick(0, 9) ? pick(1, 80) : pick(500, 1100), pick(1, 9),
             bool(pick(0, 1))};
      ++count;
      if (runs(tested, p, p.relu && pick(0, 1)) && sums_over_pixels(tested, p)) continue;
      std::printf("wrong: %s, elements of %d bytes, %d rows of %d channels, %d partitions\n",
                  tested.unit->set, tested.bytes, int(p.rows), int(p.channels), int(p.partitions));
      return 1;
    }
  std::printf("%d problems of batch norm\n", count);
}
