"""What the factors add to an optimizer step over a tree of 25 million parameters.

python -m benchmarks.factors
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import optax

import gconv
from benchmarks.measuring.stopwatch import interleaved


def parameters(millions: float) -> dict:
    """A tree like ResNet-50's: about 160 tensors, most numbers in a few large kernels."""
    blocks = 40
    width = int((millions * 1e6 / (blocks * 9)) ** 0.5)
    return {
        f"block{i}": {
            "conv": {"kernel": jnp.full((3, 3, width, width), 0.01), "bias": jnp.zeros(width)},
            "norm": {"scale": jnp.ones(width), "bias": jnp.zeros(width)},
        }
        for i in range(blocks)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--millions", type=float, default=25.0)
    parser.add_argument("--rounds", type=int, default=301)
    args = parser.parse_args()
    params = parameters(args.millions)
    rules = {"block0/**": gconv.optim.Factor(learn_rate=0.5), "**/norm/*": gconv.optim.Factor(l2=0)}
    factors = gconv.optim.factors(params, rules=rules)
    decay = gconv.optim.decayed(factors)
    solvers = {
        # The same decay without factors, so that only the factors differ.
        "adam": optax.chain(optax.add_decayed_weights(1e-4, mask=decay), optax.adam(1e-3)),
        "adam with factors": optax.chain(
            gconv.optim.add_l2(1e-4, factors), optax.adam(1e-3), gconv.optim.scale_by_learn_rate_factors(factors)
        ),
        "MATLAB's adam with factors": gconv.optim.adam(1e-3, factors=factors),
    }

    def step(solver, params, state):
        updates, state = solver.update(params, state, params)
        return optax.apply_updates(params, updates), state

    runs = {}
    for name, solver in solvers.items():
        runs[name] = functools.partial(jax.jit(functools.partial(step, solver)), params, solver.init(params))
    times = interleaved(runs, rounds=args.rounds, seconds=120)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{size / 1e6:.1f} million parameters in {len(jax.tree.leaves(params))} tensors, jax {jax.__version__}")
    for name, t in times.items():
        ratio = t["median"] / times["adam"]["median"]
        print(f"{name:<28} {t['median'] * 1e3:8.1f} ms  ({t['low'] * 1e3:.1f} to {t['high'] * 1e3:.1f})  x {ratio:.3f}")


if __name__ == "__main__":
    main()
