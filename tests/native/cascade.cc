// Random cascades under sanitizers: two or three convolutions, row by row in stripes of any size, in buffers
// that end where their numbers end, against plain loops over whole images. `make sanitize` runs it.

#include "cascade/cascade.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "parallel.h"

namespace {
int64_t left = -1;  // requests of memory until one is refused; none is below 0
bool refuse() { return left >= 0 && left-- == 0; }
}
extern "C" {
void* __real_malloc(size_t size);
void* __real_aligned_alloc(size_t alignment, size_t size);
void* __wrap_malloc(size_t size) { return refuse() ? nullptr : __real_malloc(size); }
void* __wrap_aligned_alloc(size_t alignment, size_t size) {
  return refuse() ? nullptr : __real_aligned_alloc(alignment, size);
}
}

namespace gconv {
namespace {

std::mt19937 generator(1);

int pick(int least, int most) { return std::uniform_int_distribution<int>(least, most)(generator); }

// One thread, in ranges as other threads would leave them.
bool in_parts(const Parallel&, int64_t units, int64_t, Parallel::Body body, void* argument) {
  for (int64_t first = 0, last; first < units; first = last) {
    last = std::min<int64_t>(units, first + pick(1, 4));
    if (!body(argument, first, last)) return false;
  }
  return true;
}
const Parallel PARALLEL{in_parts, 2};

template <class T>
const char* plan_of(Type type, const Problem& p, Plan& plan) {
  const Unit& unit = sizeof(T) == 4 ? baseline_float : baseline_double;
  Processor processor{};
  for (Vectors& vectors : processor.vectors[0]) vectors = unit.vectors;
  processor.lengths = 1, processor.cache = 32 << 20;
  return plan_call(Role::y, type, p, processor, 1, "", plan);
}

// A link that follows channels x height x width. What it leaves out or reads beyond the source is zero.
Problem link_after(int64_t batch, int64_t channels, int64_t height, int64_t width) {
  Problem p{};
  p.batch = batch, p.frozen = true;
  int64_t in[] = {1, height, width};
  int kind = pick(0, 3);  // pointwise, channel-wise, in groups, dense
  p.groups = kind == 1 ? channels : kind == 2 && channels % 2 == 0 ? 2 : 1;
  p.channels = channels / p.groups, p.filters = kind == 1 ? 1 : pick(1, 20);
  for (int i = 0; i < 3; ++i) {
    bool plain = i == 0 || kind == 0;
    p.in[i] = in[i], p.window[i] = plain ? 1 : pick(1, 4), p.strides[i] = plain ? 1 : pick(1, 3);
    p.dilation[i] = plain ? 1 : pick(1, 2), p.low[i] = plain ? 0 : pick(-2, 4);
    p.out[i] = plain ? in[i] : std::max<int64_t>(1, in[i] / p.strides[i] + pick(-2, 2));
  }
  return p;
}

template <class T>
std::vector<T> numbers(int64_t count) {
  std::vector<T> made(static_cast<size_t>(count));
  for (T& number : made) number = T(pick(-1000, 1000)) / 1000;
  return made;
}

template <class T>
std::vector<double> plain(const Link& link, const std::vector<double>& x) {
  const Problem& p = link.p;
  const T *w = static_cast<const T*>(link.w), *scale = static_cast<const T*>(link.epilogue.scale),
          *shift = static_cast<const T*>(link.epilogue.shift),
          *residual = static_cast<const T*>(link.epilogue.residual);
  int64_t sources = p.groups * p.channels, results = p.groups * p.filters;
  std::vector<double> y;
  for (int64_t n = 0; n < p.batch; ++n)
    for (int64_t h = 0; h < p.out[1]; ++h)
      for (int64_t v = 0; v < p.out[2]; ++v)
        for (int64_t f = 0; f < results; ++f) {
          double sum = 0;
          for (int64_t i = 0; i < p.window[1]; ++i)
            for (int64_t j = 0; j < p.window[2]; ++j) {
              int64_t a = h * p.strides[1] + i * p.dilation[1] - p.low[1],
                      b = v * p.strides[2] + j * p.dilation[2] - p.low[2];
              if (a < 0 || a >= p.in[1] || b < 0 || b >= p.in[2]) continue;
              for (int64_t c = 0; c < p.channels; ++c)
                sum +=
                    x[size_t(((n * p.in[1] + a) * p.in[2] + b) * sources + f / p.filters * p.channels + c)] *
                    w[((i * p.window[2] + j) * p.channels + c) * results + f];
            }
          if (scale) sum *= scale[f];
          if (shift) sum += shift[f];
          if (residual) sum += residual[y.size()];
          y.push_back(link.epilogue.activation == Activation::relu ? std::max(sum, 0.0) : sum);
        }
  return y;
}

template <class T>
bool runs(int64_t& refused) {
  Cascade c{};
  c.type = sizeof(T) == 4 ? Type::f32 : Type::f64, c.element = sizeof(T), c.links = pick(2, MOST_LINKS);
  std::vector<T> w[MOST_LINKS], scale[MOST_LINKS], shift[MOST_LINKS], residual;
  int64_t batch = pick(1, 3), channels = pick(1, 20), height = pick(1, 14), width = pick(1, 9);
  auto x = numbers<T>(batch * height * width * channels);
  std::vector<double> expected(x.begin(), x.end());
  for (int i = 0; i < c.links; ++i) {
    Link& link = c.link[i];
    Problem& p = link.p = link_after(batch, channels, height, width);
    channels = p.groups * p.filters, height = p.out[1], width = p.out[2];
    w[i] = numbers<T>(taps_of(p) * p.channels * channels), link.w = w[i].data();
    scale[i] = numbers<T>(channels), shift[i] = numbers<T>(channels);
    if (pick(0, 1)) link.epilogue.scale = scale[i].data();
    if (pick(0, 1)) link.epilogue.shift = shift[i].data();
    if (pick(0, 1)) link.epilogue.activation = Activation::relu;
    if (i == c.links - 1 && pick(0, 1)) {
      residual = numbers<T>(batch * height * width * channels);
      link.epilogue.residual = residual.data();
    }
    if (check(p)) return true;
    expected = plain<T>(link, expected);
  }
  choose_rows(c);
  if (pick(0, 3)) c.rows = pick(1, int(height));
  if (const char* why = plan_links(c, plan_of<T>)) return std::printf("%s\n", why), false;
  std::vector<std::vector<unsigned char>> packed;
  for (int i = 0; i < c.links; ++i) {
    Link& link = c.link[i];
    link.unit = sizeof(T) == 4 ? &baseline_float : &baseline_double;
    packed.emplace_back(size_t(packed_bytes(Role::y, link.plan)) + 64);
    auto at = reinterpret_cast<uintptr_t>(packed.back().data());
    link.memory.packed = reinterpret_cast<void*>((at + 63) / 64 * 64);
  }
  std::vector<T> y(expected.size(), T(99));
  if (!pick(0, 9)) {  // what runs out of memory says so, and leaves nothing behind
    left = pick(0, 30);
    bool done = run_first(c, x.data(), y.data());
    bool was_refused = left < 0;
    left = -1;
    if (done == was_refused)
      return std::printf("memory was refused: %d, done: %d\n", was_refused, done), false;
    refused += was_refused;
  }
  if (!run_first(c, x.data(), y.data())) return false;
  for (Link& link : c.link) link.memory.is_packed = true;
  if (!run(c, x.data(), y.data(), PARALLEL)) return false;
  double most = 1;
  for (double value : expected) most = std::max(most, std::fabs(value));
  for (size_t i = 0; i < y.size(); ++i)
    if (!(std::fabs(y[i] - expected[i]) <= most * (sizeof(T) == 4 ? 2e-5 : 1e-12))) {
      std::printf("result %d of %d is %g, not %g; stripes of %d of %d rows\n", int(i), int(y.size()),
                  double(y[i]), expected[i], int(c.rows), int(height));
      return false;
    }
  return true;
}

}  // namespace
}  // namespace gconv

int main() {
  int64_t refused = 0;
  for (int i = 0; i < 2000; ++i)
    if (!(i % 3 ? gconv::runs<float>(refused) : gconv::runs<double>(refused))) return 1;
  if (refused < 20) return std::printf("memory was refused only %d times\n", int(refused)), 1;
  std::printf("2000 cascades, %d times without memory\n", int(refused));
}
