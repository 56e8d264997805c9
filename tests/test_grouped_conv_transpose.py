"""`grouped_conv_transpose` is the exact adjoint of `grouped_conv`, and PyTorch's transposed convolution."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import draw

from gconv import grouped_conv, grouped_conv_transpose
from gconv.geometry import transposed_geometry

# y.shape, kernel.shape, groups, options. With output_padding >= stride rows are added that belong to no window.
CALLS = {
    "1d": ((2, 5, 6), (3, 2, 6), 3, {}),
    "1d-stride": ((2, 5, 6), (4, 2, 6), 2, {"strides": 3, "padding": 1}),
    "1d-causal": ((2, 7, 4), (3, 1, 4), 4, {"padding": "causal", "dilation": 2}),
    "1d-surplus": ((1, 5, 4), (3, 1, 4), 4, {"strides": 2, "padding": 1, "output_padding": 1}),
    "1d-surplus-over-stride": ((1, 4, 4), (3, 2, 4), 2, {"strides": 1, "dilation": 3, "output_padding": 2}),
    "1d-surplus-over-two-strides": ((1, 4, 4), (2, 2, 4), 2, {"strides": 2, "padding": 1, "dilation": 5, "output_padding": 4}),
    "1d-stride-over-window": ((1, 4, 2), (1, 2, 2), 1, {"strides": 3, "output_padding": 2}),
    "2d": ((2, 4, 3, 6), (3, 2, 2, 6), 2, {"strides": (2, 1), "padding": (1, 0), "dilation": (1, 2)}),
    "2d-flat-padding": ((1, 4, 5, 4), (3, 3, 1, 4), 2, {"padding": (0, 1, 2, 0)}),
    "2d-depthwise": ((1, 4, 4, 5), (3, 3, 1, 5), 5, {"strides": 2, "padding": 1, "output_padding": 1}),
    "2d-same": ((2, 3, 4, 6), (3, 4, 1, 6), 3, {"strides": (2, 3), "padding": "same"}),
    "2d-same-lower": ((2, 3, 4, 6), (3, 4, 1, 6), 3, {"strides": (2, 3), "padding": "same_lower"}),
    "2d-valid": ((1, 3, 4, 4), (2, 3, 2, 4), 2, {"strides": 2, "padding": "valid"}),
    "2d-mixed-surplus": (
        (1, 3, 3, 4),
        (2, 3, 1, 4),
        2,
        {"strides": (1, 2), "padding": ((1, 0), (0, 2)), "dilation": (3, 1), "output_padding": (2, 1)},
    ),
    "3d": ((1, 3, 2, 3, 4), (2, 3, 2, 1, 4), 2, {"strides": (2, 1, 2), "padding": (0, 1, 1), "output_padding": (1, 0, 1)}),
    "no-batch": ((4, 4, 4), (3, 3, 2, 4), 2, {"strides": 2}),
    "batch-of-batches": ((2, 1, 4, 4), (3, 2, 4), 2, {"padding": 1}),
    "zero-batch": ((0, 4, 4), (3, 2, 4), 2, {"padding": 1}),
}


def facts_and_size(y_shape, kernel_shape, groups, strides=1, padding=0, dilation=1, output_padding=0):
    """What the oracle needs, and the spatial size of the result, by the definition of both."""
    rank = len(kernel_shape) - 2
    strides, dilation, extra = ((v,) * rank if isinstance(v, int) else v for v in (strides, dilation, output_padding))
    spatial, window = y_shape[-rank - 1 : -1], kernel_shape[:rank]
    if padding in ("same", "same_lower"):
        size = tuple(n * s for n, s in zip(spatial, strides, strict=True))
        pads = oracle.pairs(padding, size, window, strides, dilation)
    else:
        pads = oracle.pairs(padding, spatial, window, strides, dilation)
        axes = zip(spatial, strides, pads, window, dilation, extra, strict=True)
        size = tuple((n - 1) * s - lo - hi + (k - 1) * d + 1 + op for n, s, (lo, hi), k, d, op in axes)
    return {"groups": groups, "strides": strides, "pads": pads, "dilation": dilation}, size


@pytest.fixture(params=CALLS)
def call(request):
    """`(y, kernel, options, the oracle's facts, the shape of the result)`."""
    y_shape, kernel_shape, groups, options = CALLS[request.param]
    facts, size = facts_and_size(y_shape, kernel_shape, groups, **options)
    rng = np.random.default_rng(0)
    y, kernel = draw(rng, y_shape, "float64"), draw(rng, kernel_shape, "float64")
    x_shape = (*y_shape[: -len(size) - 1], *size, groups * kernel_shape[-2])
    return y, kernel, {"groups": groups, **options}, facts, x_shape


def bound(kernel, facts, eps):
    """n * eps for a sum of n products, and two roundings of the result; to be multiplied by the sum of the magnitudes."""
    return (np.prod(kernel.shape[:-2]) * kernel.shape[-1] / facts["groups"] + 2) * eps


def test_values_match_the_oracle(call, implementation, needs):
    y, kernel, options, facts, x_shape = call
    needs(transposed_geometry(y.shape, kernel.shape, **options)[1], roles="x")
    y, kernel = y.astype("float32"), kernel.astype("float32")
    x = grouped_conv_transpose(y, kernel, **options, implementation=implementation)
    assert x.shape == x_shape and x.dtype == "float32"
    size = oracle.input_gradient(abs(y), abs(kernel), x_shape, **facts)
    error = abs(x - oracle.input_gradient(y, kernel, x_shape, **facts))
    assert np.all(error <= bound(kernel, facts, 1.2e-7) * size)


def test_is_the_adjoint_of_grouped_conv(call, x64):
    """<conv(x), y> = <x, conv_transpose(y)>, over the windows that y has."""
    y, kernel, options, facts, x_shape = call
    x = draw(np.random.default_rng(1), x_shape, "float64")
    forward = grouped_conv(x, kernel, **{k: v for k, v in options.items() if k != "output_padding"})
    there = np.vdot(forward[tuple(slice(n) for n in y.shape)], y)
    back = np.vdot(x, grouped_conv_transpose(y, kernel, **options))
    size = np.vdot(abs(x), oracle.input_gradient(abs(y), abs(kernel), x_shape, **facts))
    assert abs(there - back) <= 2 * (bound(kernel, facts, 2.3e-16) + x.size * 2.3e-16) * size


@pytest.mark.parametrize("name", ("1d-surplus-over-two-strides", "2d", "2d-same", "2d-mixed-surplus", "3d"))
def test_gradients_match_the_oracle(name, implementation, needs):
    """Of the transposed convolution: the convolution in y, and the kernel gradient in the kernel."""
    y_shape, kernel_shape, groups, options = CALLS[name]
    needs(transposed_geometry(y_shape, kernel_shape, groups=groups, **options)[1])
    facts, size = facts_and_size(y_shape, kernel_shape, groups, **options)
    rng = np.random.default_rng(0)
    y, kernel = draw(rng, y_shape, "float32"), draw(rng, kernel_shape, "float32")
    x = draw(rng, (*y_shape[: -len(size) - 1], *size, groups * kernel_shape[-2]), "float32")

    transpose = partial(grouped_conv_transpose, groups=groups, **options, implementation=implementation)

    @jax.jit
    def run(y, kernel, x):
        return jax.vjp(transpose, y, kernel)[1](x)

    values, sizes = gradients(y, kernel, x, facts), gradients(*map(abs, (y, kernel, x)), facts)
    for got, value, size in zip(run(y, kernel, x), values, sizes, strict=True):
        assert np.all(abs(got - value) <= (max(y.size, kernel.size) + 2) * 1.2e-7 * size)


def gradients(y, kernel, x, facts):
    crop = tuple(slice(n) for n in y.shape)
    return oracle.conv(x, kernel, **facts)[crop], oracle.kernel_gradient(x, y, kernel.shape, **facts)


def test_bias_has_one_entry_per_input_channel_of_the_convolution():
    y, kernel, bias = jnp.ones((1, 3, 6)), jnp.ones((2, 1, 6)), jnp.arange(3.0)
    without = grouped_conv_transpose(y, kernel, groups=3)
    np.testing.assert_array_equal(grouped_conv_transpose(y, kernel, bias, groups=3), without + bias[None, None])
    with pytest.raises(ValueError, match=r"`bias` .* shape \(3,\), got \(6,\)"):
        grouped_conv_transpose(y, kernel, jnp.ones(6), groups=3)


def test_channel_wise_means_the_channels_of_y():
    y, kernel = jnp.ones((1, 3, 4)), jnp.ones((2, 2, 4))
    result = grouped_conv_transpose(y, kernel, groups="channel-wise")
    np.testing.assert_array_equal(result, grouped_conv_transpose(y, kernel, groups=4))
    assert result.shape == (1, 4, 8)


@pytest.mark.parametrize("dtype", ("float16", "bfloat16", "complex64", "int32"))
def test_dtype_is_kept(dtype):
    y, kernel = jnp.ones((1, 1, 4096), dtype), jnp.ones((1, 1, 4096), dtype)
    result = grouped_conv_transpose(y, kernel, groups=1)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result.astype("complex64"), 4096)  # half precision would stop at 256 or 2048


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"output_padding": 2, "strides": 2}, r"`output_padding\[0\]` must be smaller .* Values that work: 0 to 1"),
        ({"output_padding": 1, "strides": 2, "padding": "same"}, '`output_padding` must be 0 with padding="same"'),
        ({"groups": 4}, "`groups` must divide the channels of `y`: 6 channels, groups=4"),
        ({"padding": 9}, "The result would be empty: .* padding=0"),
        ({"kernel": jnp.ones((3, 2, 4))}, r"A kernel shape that works: \(3, 2, 6\)"),
    ),
)
def test_refuses_with_a_value_that_works(options, message):
    kernel = options.pop("kernel", jnp.ones((3, 2, 6)))
    with pytest.raises(ValueError, match=message):
        grouped_conv_transpose(jnp.ones((1, 5, 6)), kernel, **{"groups": 3, **options})


TORCH = {
    "1d": ((2, 5, 6), (3, 2, 6), 3, {"strides": 2, "padding": 1, "output_padding": 1}),
    "1d-dilated": ((1, 5, 4), (3, 1, 4), 4, {"strides": 1, "dilation": 3, "output_padding": 2}),
    "2d": ((2, 4, 3, 6), (3, 2, 3, 6), 2, {"strides": (2, 3), "padding": (1, 0), "dilation": (1, 2), "output_padding": (0, 2)}),
    "2d-depthwise": ((1, 4, 4, 5), (3, 3, 1, 5), 5, {"strides": 2, "padding": 1, "output_padding": 1}),
    "3d": ((1, 3, 2, 3, 4), (2, 3, 2, 1, 4), 2, {"strides": (2, 1, 2), "padding": (0, 1, 1), "output_padding": (1, 0, 1)}),
}


@pytest.mark.parametrize("name", TORCH)
def test_equals_torch(name):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")
    y_shape, kernel_shape, groups, options = TORCH[name]
    rank = len(kernel_shape) - 2
    rng = np.random.default_rng(0)
    y, kernel = draw(rng, y_shape, "float32"), draw(rng, kernel_shape, "float32")
    bias = draw(rng, (groups * kernel_shape[-2],), "float32")
    result = grouped_conv_transpose(y, kernel, bias, groups=groups, **options)

    def theirs(y, kernel, bias):
        y, kernel, bias = (torch.tensor(np.float64(a)) for a in (y, kernel, bias))
        named = {"stride" if k == "strides" else k: v for k, v in options.items()}
        transpose = getattr(torch.nn.functional, f"conv_transpose{rank}d")
        weight = kernel.permute(rank + 1, rank, *range(rank))  # (*window, J, C_out) -> (C_out, J, *window)
        return transpose(y.movedim(-1, 1), weight, bias, groups=groups, **named).movedim(1, -1).numpy()

    error = abs(result - theirs(y, kernel, bias))
    terms = np.prod(kernel_shape[:rank]) * kernel_shape[-1] / groups + 3
    assert error.shape == result.shape
    assert np.all(error <= terms * 1.2e-7 * theirs(*map(abs, (y, kernel, bias))))
