"""MATLAB's layout of the parameters, both ways."""

import jax.numpy as jnp
import numpy as np
import pytest

from gconv import interop


@pytest.mark.parametrize("window", [(3,), (3, 5), (2, 3, 4)])
@pytest.mark.parametrize("groups, channels, filters", [(1, 3, 2), (4, 1, 1), (3, 2, 5)])
def test_kernel_round_trip_and_meaning(window, groups, channels, filters):
    weights = np.random.default_rng(0).normal(size=(*window, channels, filters, groups))
    kernel = interop.kernel_from_matlab(weights)
    assert kernel.shape == (*window, channels, groups * filters)
    for group in range(groups):
        for f in range(filters):
            np.testing.assert_array_equal(kernel[..., group * filters + f], weights[..., f, group])
    np.testing.assert_array_equal(interop.kernel_to_matlab(kernel, groups=groups), weights)
    np.testing.assert_array_equal(interop.kernel_from_matlab(jnp.asarray(weights)), kernel.astype(np.float32))


def test_bias_round_trip_and_meaning():
    bias = np.arange(12.0).reshape(1, 1, 4, 3)
    flat = interop.bias_from_matlab(bias)
    assert flat.tolist() == [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]
    np.testing.assert_array_equal(interop.bias_to_matlab(flat, groups=3), bias)
    np.testing.assert_array_equal(interop.bias_from_matlab(bias[0, 0]), flat)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(3, 3, 2\).*trailing axes"):
        interop.kernel_from_matlab(np.ones((3, 3, 2)))
    with pytest.raises(ValueError, match=r"kernel shape \(3, 3, 2, 8\), groups=3"):
        interop.kernel_to_matlab(np.ones((3, 3, 2, 8)), groups=3)
    with pytest.raises(ValueError, match="filters, groups"):
        interop.bias_from_matlab(np.ones(4))
    with pytest.raises(ValueError, match="groups=3"):
        interop.bias_to_matlab(np.ones(4), groups=3)
