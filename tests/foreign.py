"""What the tests of `gconv.interop` share: both sides on the same input, values and gradients."""

from dataclasses import replace

import jax
import numpy as np


def ours(found, x, ct=None) -> dict[str, np.ndarray]:
    """y and the gradients of x, kernel and bias of a `Convolution`, for a cotangent (ones where None is given)."""
    has_bias = found.bias is not None

    @jax.jit
    def run(x, kernel, bias, ct):
        call = lambda x, kernel, bias: replace(found, kernel=kernel, bias=bias if has_bias else None)(x)
        y, vjp = jax.vjp(call, x, kernel, bias)
        return y, *vjp(ct if ct is not None else jax.numpy.ones_like(y))

    bias = found.bias if has_bias else np.zeros(found.config.out_features(found.in_features), found.kernel.dtype)
    y, dx, dw, db = map(
        np.asarray, run(*(np.float32(a) for a in (x, found.kernel, bias)), None if ct is None else np.float32(ct))
    )
    return {"y": y, "x": dx, "w": dw} | ({"b": db} if has_bias else {})


def assert_same(got: dict, expected: dict) -> None:
    """All of `expected`, within what float32 sums of a few hundred terms may be off."""
    assert set(got) == set(expected)
    for name, value in expected.items():
        value = np.asarray(value)
        assert got[name].shape == value.shape, f"{name}: {got[name].shape}, not {value.shape}"
        np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-5 * max(np.abs(value).max(initial=0), 1), err_msg=name)


def normal(seed: int, *shape) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def last(a, rank: int) -> np.ndarray:
    """Channels first -> last, with a batch."""
    return np.moveaxis(np.asarray(a), 1, -1) if np.ndim(a) == rank + 2 else np.moveaxis(np.asarray(a), 0, -1)


def first(a, rank: int) -> np.ndarray:
    return np.moveaxis(np.asarray(a), -1, 1)
