// Winograd's three transforms (winograd.h) along one axis, and the register tile of the products between
// them: Q squares by V vectors of filters, in P points at once where V is small, so that enough sums are
// under way:
//
//   for each source channel:  P * V loads of weights;  for each of P * Q squares: 1 broadcast load, V
//   multiply-adds
//
// 32 loads for 28 multiply-adds with 32 registers and V = 1, 18 for 28 with V = 2, 10 for 21 with V = 3.

#pragma once

#include "gather/gather.h"

namespace gconv {
namespace {

template <class A>
class WinogradTiles {
  static constexpr int L = LANES<A>;
  static constexpr bool MANY = REGISTERS == 32;
  static constexpr int P1 = MANY ? 4 : 2, P2 = MANY ? 2 : 1;  // points at once, of 1 and of 2 vectors
  const Plan& plan;
  const Problem& p;
  const Gather& g;
  bool numbers;    // whether elements are numbers already
  int64_t blocks;  // of L of a group's channels

 public:
  static constexpr int Q = winograd_tile(REGISTERS);  // 7 x 7 squares are an image of 14 x 14

  WinogradTiles(const Plan& plan, Type type, const Problem& p, const Gather& g)
      : plan(plan), p(p), g(g), numbers(are_numbers<A>(type)), blocks(ceil_div(g.sources, L)) {}

  // G, B' and A' along one axis.
  static ALWAYS_INLINE void weights(const Vector<A> (&w)[3], Vector<A> (&points)[4]) {
    Vector<A> sum = (w[0] + w[2]) * (A)0.5, middle = w[1] * (A)0.5;
    points[0] = w[0], points[1] = sum + middle, points[2] = sum - middle, points[3] = w[2];
  }
  static ALWAYS_INLINE void sources(Vector<A> (&x)[4]) {
    Vector<A> first = x[0] - x[2], sum = x[1] + x[2], difference = x[2] - x[1];
    x[3] = x[1] - x[3], x[0] = first, x[1] = sum, x[2] = difference;
  }
  static ALWAYS_INLINE void sums(const Vector<A> (&m)[4], Vector<A>& first, Vector<A>& second) {
    first = m[0] + m[1] + m[2], second = m[1] - m[2] - m[3];
  }

  // The products of some tiles, summed along the rows of points already: [tile][row of points][column of
  // results][square][vector].
  template <int V>
  __attribute__((noinline)) void multiply(const Phase& depth, const A* x, int64_t point, const A* w,
                                          int64_t tiles, A* to) const {
    constexpr int P = V == 1 ? P1 : V == 2 ? P2 : 1;  // points at once
    int64_t step = p.window[0] * g.sources * V * L + plan.gap;
    // The tile's share of the next row's weights, of a channel: see Gather::asks_for_weights.
    int64_t each = g.asks_for_weights(plan, p) ? V * L / tiles : 0;
    for (int64_t row = 0; row < 4; ++row)
      for (int64_t tile = 0; tile < tiles; ++tile) {
        Vector<A> products[4][Q][V];
        UNROLL for (int j = 0; j < 4; j += P) {
          Vector<A> sum[P][Q][V] = {};
          for (int64_t a = 0; a < depth.size; ++a) {
            const A* first = w + (row * 4 + j) * step + depth.taps[a].index * g.sources * V * L;
            const A* next = each ? first + 4 * step + tile * g.sources * each : first;
            add_products(x + (tile * 16 + row * 4 + j) * point + a * blocks * Q * L, point, first, step, next,
                         each, sum);
          }
          UNROLL for (int k = 0; k < P; ++k) UNROLL
          for (int q = 0; q < Q; ++q) UNROLL
          for (int v = 0; v < V; ++v) products[j + k][q][v] = sum[k][q][v];
        }
        A* first = to + (tile * 4 + row) * 2 * Q * V * L;
        UNROLL for (int q = 0; q < Q; ++q) UNROLL
        for (int v = 0; v < V; ++v, first += L) {
          Vector<A> one, other;
          sums({products[0][q][v], products[1][q][v], products[2][q][v], products[3][q][v]}, one, other);
          store(first, one), store(first + Q * V * L, other);
        }
      }
  }

  // A tile's results, of that. Whether all are finite.
  template <int V>
  __attribute__((noinline)) bool results(const A* rows, int64_t filters, const int64_t* outputs,
                                         A* result) const {
    bool streams = numbers && plan.streams && whole_lines<A, V>(result, g.results);
    Vector<A> zero{};  // as long as all are finite
    for (int q = 0; q < Q; ++q) UNROLL
    for (int v = 0; v < V; ++v) {
      Vector<A> square[4];
      UNROLL for (int j = 0; j < 2; ++j) {
        Vector<A> column[4];
        UNROLL for (int i = 0; i < 4; ++i) column[i] = load(rows + (((i * 2 + j) * Q + q) * V + v) * L);
        sums(column, square[j], square[2 + j]);
      }
      UNROLL for (int k = 0; k < 4; ++k) {
        if (outputs[q * 4 + k] < 0) continue;
        zero += square[k] - square[k];
        A* to = result + outputs[q * 4 + k] + v * L;
        if (filters >= (v + 1) * L)
          streams ? stream(to, square[k]) : store(to, square[k]);
        else
          store_first(to, square[k], filters - v * L);
      }
    }
    auto finite = zero == zero;  // all bits of a lane, or none
    uint64_t bits[sizeof finite / 8], all = ~uint64_t(0);
    memcpy(bits, &finite, sizeof finite);
    for (uint64_t some : bits) all &= some;
    return all == ~uint64_t(0);
  }

 private:
  // The products of one depth tap, added to P points.
  template <int P, int V>
  ALWAYS_INLINE void add_products(const A* x, int64_t point, const A* w, int64_t step, const A* next,
                                  int64_t each, Vector<A> (&products)[P][Q][V]) const {
    for (int64_t left = g.sources; left > 0; left -= L, x += Q * L)
      for (int64_t s = 0; s < minimum(L, left); ++s, w += V * L, next += each) UNROLL
    for (int i = 0; i < P; ++i) {
      Vector<A> weight[V];
      UNROLL for (int v = 0; v < V; ++v) weight[v] = load(w + i * step + v * L);
      if constexpr (MANY) __builtin_prefetch(next + i * step, 0, 2);
      UNROLL for (int q = 0; q < Q; ++q) {
        Vector<A> source = broadcast(x[i * point + q * L + s]);
        UNROLL for (int v = 0; v < V; ++v) products[i][q][v] += source * weight[v];
      }
    }
  }
};

}  // namespace
}  // namespace gconv
