"""Initial values: MATLAB's statistics, per group."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gconv

WINDOW, CHANNELS, FILTERS, GROUPS = (5, 5), 8, 16, 4
FAN_IN, FAN_OUT = 25 * CHANNELS, 25 * FILTERS
VARIANCE = {"glorot": 2 / (FAN_IN + FAN_OUT), "he": 2 / FAN_IN, "narrow-normal": 0.01**2}
# Variance of the sample variance, relative to variance**2, per sample: kurtosis - 1.
SPREAD = {"glorot": 9 / 5 - 1, "he": 3 - 1, "narrow-normal": 3 - 1}


def weights(name, seed=0, **options):
    layer = gconv.nnx.GroupedConv(CHANNELS * GROUPS, WINDOW, FILTERS, GROUPS, kernel_init=name, rngs=nnx.Rngs(seed), **options)
    return np.asarray(gconv.interop.kernel_to_matlab(layer.kernel[...], groups=GROUPS), np.float64)


@pytest.mark.parametrize("name", VARIANCE)
def test_variance_of_every_group_is_within_three_standard_errors(name):
    for group in np.moveaxis(weights(name), -1, 0):
        standard_error = VARIANCE[name] * np.sqrt(SPREAD[name] / group.size)
        assert abs(group.var() - VARIANCE[name]) < 3 * standard_error
        assert abs(group.mean()) < 3 * np.sqrt(VARIANCE[name] / group.size)


def test_counting_the_filters_of_all_groups_would_be_noticed():
    wrong = 2 / (FAN_IN + FAN_OUT * GROUPS)  # what JAX's variance_scaling makes of the kernel's shape
    sample = weights("glorot")
    assert abs(sample.var() - wrong) > 10 * wrong * np.sqrt(SPREAD["glorot"] / sample.size)


def test_glorot_is_uniform_up_to_its_limit():
    sample, limit = weights("glorot"), np.sqrt(6 / (FAN_IN + FAN_OUT))
    assert np.abs(sample).max() <= limit
    assert np.abs(sample).max() > 0.999 * limit


def test_he_is_not_truncated():
    # Beyond two standard deviations lie 4.55% of a normal distribution, and none of JAX's he_normal before it is rescaled.
    sample = weights("he") / np.sqrt(VARIANCE["he"])
    beyond = (np.abs(sample) > 2.5).mean()
    expected = 0.012419
    assert abs(beyond - expected) < 3 * np.sqrt(expected / sample.size)
    assert np.abs(sample).max() > 3.5


def test_orthogonal_columns_per_group():
    for group in np.moveaxis(weights("orthogonal"), -1, 0):
        columns = group.reshape(-1, FILTERS)
        np.testing.assert_allclose(columns.T @ columns, np.eye(FILTERS), atol=1e-5)
    assert not np.allclose(*np.moveaxis(weights("orthogonal"), -1, 0)[:2])


def test_zeros_and_ones():
    assert not weights("zeros").any()
    assert (weights("ones") == 1).all()


def test_biases():
    def bias(**options):
        return np.asarray(gconv.nnx.GroupedConv(64, 1, 64, 64, rngs=nnx.Rngs(0), **options).bias[...])

    assert not bias().any()
    assert (bias(bias_init="ones") == 1).all()
    sample = bias(bias_init="narrow-normal")
    assert abs(sample.var() - 1e-4) < 3 * 1e-4 * np.sqrt(2 / sample.size)
    assert bias(bias_init=gconv.initializers.from_size(lambda size: np.arange(64 * 64).reshape(size))).tolist()[:3] == [
        0,
        64,
        128,
    ]


def test_a_transposed_layer_counts_its_own_fans():
    layer = gconv.nnx.GroupedConvTranspose(FILTERS * GROUPS, WINDOW, CHANNELS, GROUPS, kernel_init="he", rngs=nnx.Rngs(0))
    sample, variance = np.asarray(layer.kernel[...], np.float64), 2 / (25 * FILTERS)
    assert abs(sample.var() - variance) < 3 * variance * np.sqrt(2 / sample.size)


def test_a_jax_initializer_sees_the_kernel_shape():
    seen = []

    def init(key, shape, dtype):
        seen.append((shape, dtype))
        return jax.nn.initializers.lecun_normal()(key, shape, dtype)

    layer = gconv.nnx.GroupedConv(6, 3, 2, 3, kernel_init=init, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert seen == [((3, 3, 2, 6), jnp.bfloat16)]
    assert layer.kernel.dtype == jnp.bfloat16


def test_a_function_of_the_size_sees_matlabs_size():
    sizes = []

    def fill(size):
        sizes.append(size)
        return np.arange(np.prod(size)).reshape(size)

    layer = gconv.nnx.GroupedConv(6, 3, 2, 3, kernel_init=gconv.initializers.from_size(fill), rngs=nnx.Rngs(0))
    assert sizes == [(3, 3, 2, 2, 3)]
    np.testing.assert_array_equal(gconv.interop.kernel_to_matlab(layer.kernel[...], groups=3), fill(sizes[0]))


def test_initializers_serve_flax_conv_when_they_know_the_groups():
    layer = nnx.Conv(8, 8, (3, 3), feature_group_count=4, kernel_init=gconv.initializers.glorot(groups=4), rngs=nnx.Rngs(0))
    assert np.abs(layer.kernel[...]).max() <= np.sqrt(6 / (9 * 2 + 9 * 2))
    with pytest.raises(ValueError, match=r"glorot\(groups=4\)"):
        nnx.Conv(8, 8, (3, 3), feature_group_count=4, kernel_init=gconv.initializers.glorot(), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="`groups` must divide"):
        gconv.initializers.he(groups=3)(jax.random.key(0), (3, 3, 2, 8))


def test_a_function_that_returns_another_shape_is_named():
    for init in (lambda key, shape, dtype: jnp.ones(3), gconv.initializers.from_size(lambda size: np.ones(3))):
        with pytest.raises(ValueError, match=r"shape.*\(3,\)|\(3,\).*size"):
            gconv.nnx.GroupedConv(4, 3, 1, 2, kernel_init=init, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", ["glorot", "he", "orthogonal", "narrow-normal"])
def test_the_same_key_gives_the_same_weights_in_every_dtype(name):
    assert (weights(name, seed=1) == weights(name, seed=1)).all()
    assert not (weights(name, seed=1) == weights(name, seed=2)).any()
    assert gconv.initializers.KERNEL[name]().within(4)(jax.random.key(0), (3, 3, 2, 8), jnp.float16).dtype == jnp.float16
