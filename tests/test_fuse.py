"""`gconv.fuse`: the same function, how much of it is fused, and what must not be."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from foreign import normal
from jax import lax
from jax.extend.core import jaxprs_in_params
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gconv
from gconv.fusion import epilogue, program, rewrite
from gconv.fusion.spellings import spellings

C = 8
TOLERANCE = {"float64": 1e-12, "float32": 2e-5, "bfloat16": 4e-2, "float16": 4e-3}


def array(seed: int, *shape, dtype="float32"):
    return jnp.asarray(normal(seed, *shape), dtype)


def images(dtype="float32", n=2):
    return array(0, n, 6, 5, C, dtype=dtype)


def kernel(seed=1, channels=4, filters=C, dtype="float32", window=3):
    return array(seed, window, window, channels, filters, dtype=dtype) / 6


def conv(x, w, **options):
    """lax's, in two groups or as many as the shapes say."""
    groups = x.shape[-1] // w.shape[-2]
    names = ("NHWC", "HWIO", "NHWC")
    options = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": names, "feature_group_count": groups} | options
    return lax.conv_general_dilated(x, w, **options)


def channels(seed, dtype="float32"):
    return array(seed, C, dtype=dtype)


def along(a, ndim=4):
    return a.reshape((1,) * (ndim - 1) + a.shape)


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(getattr(inner, "jaxpr", inner))


def epilogues(function, *args) -> list[dict]:
    """The parameters of all convolutions with an epilogue in a program."""
    found = equations(jax.make_jaxpr(function)(*args).jaxpr)
    return [equation.params for equation in found if equation.primitive is epilogue.PRIMITIVE]


def close(got, expected, tolerance=None):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        g, e = jnp.asarray(g), jnp.asarray(e)
        assert (g.dtype, g.shape, g.weak_type) == (e.dtype, e.shape, e.weak_type)
        wide = np.float64 if jnp.issubdtype(e.dtype, jnp.floating) else e.dtype
        g, e = np.asarray(g).astype(wide), np.asarray(e).astype(wide)
        bound = (TOLERANCE.get(str(e.dtype), 0) if tolerance is None else tolerance) * max(np.abs(e).max(initial=0), 1)
        np.testing.assert_allclose(g, e, rtol=0, atol=bound)


def check(function, *args, parts, tolerance=2e-5) -> list[str]:
    """The same results as unfused; these parts in its convolutions, in the report as in the program. Returns the reasons."""
    fused = gconv.fuse(function)
    close(fused(*args), jax.jit(function)(*args), tolerance)
    assert [row.parts for row in fused.report.convolutions] == parts, fused.report
    assert len(epilogues(fused, *args)) == sum(map(bool, parts))
    return [row.reason for row in fused.report.convolutions]


# --- activations -----------------------------------------------------------------------------------------------------

SPELLINGS = [*spellings()]


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_every_spelling_of_every_activation(dtype):
    x, w, b = images(dtype), kernel(dtype=dtype), channels(2, dtype)
    for name, function in SPELLINGS:
        spelled = partial(lambda f, x: f(x, jnp.asarray(0.25, x.dtype)), function) if name == "leaky_relu" else function
        with jax.numpy_dtype_promotion("standard"):
            fused = gconv.fuse(lambda x, w, b: spelled(conv(x, w) + along(b)))  # noqa: B023
            close(fused(x, w, b), spelled(conv(x, w) + along(b)), TOLERANCE[dtype])
        (row,) = fused.report.convolutions
        assert row.parts == ("shift", name), (name, row)


@pytest.mark.parametrize("slope", (0.2, -1.5, 0.0))
def test_the_slope_is_the_programs(slope):
    fused = gconv.fuse(lambda x, w: jax.nn.leaky_relu(conv(x, w), slope))
    close(fused(images(), kernel()), jax.nn.leaky_relu(conv(images(), kernel()), slope), 2e-5)
    (params,) = epilogues(fused, images(), kernel())
    assert params["activation"].slope == np.float32(slope)


def gelu_whose_gate_is_read(x):
    gate = 0.5 * (1 + jnp.tanh(0.7978845608 * (x + 0.044715 * x**3)))
    return x * gate, gate


NOT_QUITE = {
    "another limit": lambda x: jnp.clip(x, 0, 5),
    "another lower limit": lambda x: jnp.maximum(x, 0.1),
    "another slope of the gate": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "the hard sigmoid of old Keras": lambda x: jnp.clip(0.2 * x + 0.5, 0, 1),
    "NaN becomes 0": lambda x: jnp.where(x > 0, x, 0.0),
    "NaN becomes NaN times 2": lambda x: jnp.where(x > 0, 2 * x, x),
    "the gate is read by others": gelu_whose_gate_is_read,
    "another power": lambda x: 0.5 * x * (1 + jnp.tanh(0.7978845608 * (x + 0.044715 * x**5))),
    "the other factor": lambda x: jax.nn.sigmoid(x) * jnp.abs(x),
    "a slope for each channel": lambda x: jnp.where(x >= 0, x, along(channels(9)) * x),
    "max of two": lambda x: jnp.maximum(x, -x),
    "squared": lambda x: jnp.square(x),
}


@pytest.mark.parametrize("name", NOT_QUITE)
def test_what_is_not_quite_an_activation_is_left(name):
    begun = {"another limit": ("shift", "relu"), "the hard sigmoid of old Keras": ("scale", "shift", "relu")}
    function = lambda x, w, b: NOT_QUITE[name](conv(x, w) + along(b))
    check(function, images(), kernel(), channels(2), parts=[begun.get(name, ("shift",))])


def test_a_value_that_an_activation_reads_may_have_no_other_reader():
    reasons = check(lambda x, w: (y := conv(x, w), jax.nn.relu(y)), images(), kernel(), parts=[()])
    assert reasons == ["its result is a result of the function"]
    reasons = check(lambda x, w: jax.nn.silu(y := conv(x, w)) + y.mean(), images(), kernel(), parts=[()])
    assert reasons == ["its result has 3 readers"]


# --- sums and factors ------------------------------------------------------------------------------------------------

b, s = channels(2), channels(3)
AFFINE = {
    "y + b": (lambda y, b, s: y + along(b), ("shift",)),
    "b + y": (lambda y, b, s: along(b) + y, ("shift",)),
    "y - b": (lambda y, b, s: y - along(b), ("shift",)),
    "b - y": (lambda y, b, s: along(b) - y, ("scale", "shift")),
    "y * s": (lambda y, b, s: y * along(s), ("scale",)),
    "y / s": (lambda y, b, s: y / along(s), ("scale",)),
    "-y": (lambda y, b, s: -y, ("scale",)),
    "b - (y + s)": (lambda y, b, s: along(b) - (y + along(s)), ("scale", "shift")),
    "-(y + s) * b": (lambda y, b, s: -(y + along(s)) * along(b), ("scale", "shift")),
    "(y + s) / b - s": (lambda y, b, s: (y + along(s)) / along(b) - along(s), ("scale", "shift")),
    "a number": (lambda y, b, s: y * 2 + 1, ("scale", "shift")),
    "a number that is an argument": (lambda y, b, s: y * b[0] + s[1], ("scale", "shift")),
    "broadcast to all": (lambda y, b, s: y + jnp.broadcast_to(b, y.shape), ("shift",)),
    "computed on all": (lambda y, b, s: y * lax.rsqrt(jnp.broadcast_to(b**2, y.shape) + 1), ("scale",)),
    "one number for all channels": (lambda y, b, s: y + b[:1].reshape(1, 1, 1, 1), ("shift",)),
    "in a jit": (lambda y, b, s: jax.jit(lambda y: y + along(b))(y), ("shift",)),
}


@pytest.mark.parametrize("name", AFFINE)
def test_factors_and_sums(name):
    function, parts = AFFINE[name]
    check(lambda x, w, b, s: function(conv(x, w), b, s), images(), kernel(), b, s, parts=[parts])


OTHERWISE = {
    "along the rows": lambda y: y + array(4, 1, 6, 1, 1),
    "along the images": lambda y: y * array(4, 2, 1, 1, 1),
    "of images and channels": lambda y: y * array(4, 2, 1, 1, C),
    "divided by it": lambda y: along(s) / y,
    "power": lambda y: y**3,
    "reduced": lambda y: lax.reduce_window(y, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_what_is_not_per_channel_is_left(name):
    (reason,) = check(lambda x, w: OTHERWISE[name](conv(x, w)), images(), kernel(), parts=[()])
    assert reason.startswith("followed by")


def norm(y, p):
    mean, var, scale, bias = map(along, p)
    return (y - mean) * (lax.rsqrt(var + 1e-5) * scale) + bias


def statistics(seed):
    return (channels(seed), channels(seed + 1) ** 2 + 0.5, channels(seed + 2), channels(seed + 3))


def bottleneck(x, ws, ps):
    y = jax.nn.relu(norm(conv(x, ws[0]), ps[0]))
    y = jax.nn.relu(norm(conv(y, ws[1]), ps[1]))
    return jax.nn.relu(x + norm(conv(y, ws[2]), ps[2]))


BOTTLENECK = [("scale", "shift", "relu")] * 2 + [("scale", "shift", "residual", "relu")]


def block():
    ws = (kernel(1, C, window=1), kernel(2), kernel(3, C, window=1))
    return images(), ws, (statistics(10), statistics(20), statistics(30))


def test_a_whole_block_against_loops_in_numpy():
    x, ws, ps = block()
    check(bottleneck, x, ws, ps, parts=BOTTLENECK)
    wide = np.asarray(x, np.float64)
    for i, (w, p) in enumerate(zip(ws, ps, strict=True)):
        same = w.shape[0] // 2
        options = dict(groups=C // w.shape[2], strides=(1, 1), pads=((same, same),) * 2, dilation=(1, 1))
        mean, var, scale, bias = (np.asarray(a, np.float64) for a in p)
        wide = (oracle.conv(wide, w, **options) - mean) / np.sqrt(var + 1e-5) * scale + bias
        wide = np.maximum(wide + np.asarray(x) if i == 2 else wide, 0)
    np.testing.assert_allclose(gconv.fuse(bottleneck)(x, ws, ps), wide, rtol=0, atol=2e-5 * np.abs(wide).max())


# --- residuals -------------------------------------------------------------------------------------------------------


def test_of_two_convolutions_that_are_added_the_later_one_takes_the_sum():
    two = lambda x, w, v, b: jax.nn.relu((conv(x, w) + along(b)) + conv(x, v) * 2)
    check(two, images(), kernel(), kernel(5), b, parts=[("shift",), ("scale", "residual", "relu")])
    (last,) = [p for p in epilogues(gconv.fuse(two), images(), kernel(), kernel(5), b) if "residual" in p["parts"]]
    assert last["activation"].name == "relu"


RESIDUALS = {
    "x + y": (lambda y, x: x + y, ("residual",)),
    "y + x": (lambda y, x: y + x, ("residual",)),
    "a factor after it": (lambda y, x: (y + x) * 2, ("residual",)),
    "a sum after it": (lambda y, x: (y + x) + along(b), ("residual",)),
    "a residual after it": (lambda y, x: (y + x) + x * x, ("residual",)),
    "after an activation": (lambda y, x: jax.nn.relu(y) + x, ("relu",)),
    "an activation after an activation": (lambda y, x: jnp.tanh(jax.nn.relu(y)), ("relu",)),
    "subtracted": (lambda y, x: y - x, ()),
    "of one image, broadcast": (lambda y, x: y + x[:1], ()),
    "of the mean, broadcast to all": (lambda y, x: y + jnp.broadcast_to(x.mean((1, 2), keepdims=True), x.shape), ()),
    "itself": (lambda y, x: y + y, ()),
}


@pytest.mark.parametrize("name", RESIDUALS)
def test_residuals(name):
    function, parts = RESIDUALS[name]
    check(lambda x, w: function(conv(x, w), x), images(), kernel(), parts=[parts])


# --- what must be left alone -----------------------------------------------------------------------------------------


def test_squeeze_and_excite():
    def excite(x, w, v):
        y = jax.nn.silu(conv(x, w) + along(b))
        gate = jax.nn.sigmoid(conv(y.mean((1, 2), keepdims=True), v) + along(s))
        return conv(y * gate, w) + along(b)

    parts = [("shift", "silu"), ("shift", "sigmoid"), ("shift",)]
    check(excite, images(), kernel(), kernel(4, C, window=1), parts=parts)
    check(excite, images(n=1), kernel(), kernel(4, C, window=1), parts=parts)  # where the gate is one number for each channel


def test_a_gate_for_each_channel_from_another_convolution():
    gated = lambda x, w, v: conv(x, w) * -jnp.broadcast_to(conv(x.mean((1, 2), keepdims=True), v) + along(b), x.shape)
    check(gated, images(n=1), kernel(), kernel(4, C, window=1), parts=[("scale",), ("shift",)])
    check(gated, images(n=2), kernel(), kernel(4, C, window=1), parts=[(), ("shift",)])


def test_a_norm_in_training_is_left():
    def trained(x, w):
        y = conv(x, w)
        return jax.nn.relu((y - y.mean((0, 1, 2), keepdims=True)) * lax.rsqrt(y.var((0, 1, 2), keepdims=True) + 1e-5))

    (reason,) = check(trained, images(), kernel(), parts=[()])
    assert "readers" in reason


def test_dropout_that_draws():
    def dropped(key, x, w):
        y = conv(x, w) + along(b)
        return jax.nn.relu(jnp.where(jax.random.bernoulli(key, 0.5, y.shape), y / 0.5, 0))

    check(dropped, jax.random.key(3), images(), kernel(), parts=[("scale", "shift")])


def test_one_kernel_twice_and_one_jitted_layer_twice():
    layer = jax.jit(lambda x, w, b: jax.nn.relu(conv(x, w) + along(b)))
    check(lambda x, w: layer(layer(x, w, b), w, s), images(), kernel(), parts=[("shift", "relu")] * 2)


def test_a_result_that_is_printed_has_a_reader_more(capfd):
    def printed(x, w):
        y = conv(x, w)
        jax.debug.print("mean {}", y.mean())
        return jax.nn.relu(y)

    fused = gconv.fuse(printed)
    jax.block_until_ready(fused(images(), kernel()))
    jax.effects_barrier()
    assert capfd.readouterr().out.count("mean") == 1
    assert [row.parts for row in fused.report.convolutions] == [()]


def test_what_is_printed_elsewhere_changes_nothing(capfd):
    def printed(x, w):
        jax.debug.print("first {}", x[0, 0, 0, 0])
        return jax.nn.relu(conv(x, w))

    fused = gconv.fuse(printed)
    close(fused(images(), kernel()), jax.nn.relu(conv(images(), kernel())), 2e-5)
    jax.effects_barrier()
    assert capfd.readouterr().out.count("first") == 1
    assert [row.parts for row in fused.report.convolutions] == [("relu",)]


def test_what_is_computed_elsewhere_stays_there():
    from jax._src.compute_on import extend_compute_type  # behind `compute_on`, whose arguments are others in each JAX

    def hosted(function, y):
        with extend_compute_type("device_host"):
            return function(y)

    for function, name in ((lambda y: y * 2, "mul"), (jnp.tanh, "tanh"), (jax.jit(jnp.tanh), "jit")):
        fused = gconv.fuse(lambda x, w: hosted(function, conv(x, w)))  # noqa: B023
        assert not epilogues(fused, images(), kernel())
        assert [row.reason for row in fused.report.convolutions] == [f"followed by {name} on device_host"]


def test_readers_whose_results_nothing_reads_do_not_count():
    def function(x, w):
        y = conv(x, w)
        y.mean()
        return jax.nn.relu(y)

    check(function, images(), kernel(), parts=[("relu",)])


def test_nothing_to_fuse_is_the_same_program():
    plain = lambda x, w: conv(jnp.sin(x), w)
    fused = gconv.fuse(plain)
    (inner,) = [e for e in equations(jax.make_jaxpr(fused)(images(), kernel()).jaxpr) if e.primitive.name == "jit"]
    assert str(inner.params["jaxpr"].jaxpr) == str(jax.make_jaxpr(plain)(images(), kernel()).jaxpr)


# --- types -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ("bfloat16", "float16"))
def test_half_precision_normed_in_float32(dtype):
    def layer(x, w, b, p):
        y = (conv(x, w) + along(b)).astype("float32")
        return jax.nn.gelu(norm(y, p).astype(dtype))

    args = images(dtype), kernel(dtype=dtype), channels(2, dtype), statistics(10)
    check(layer, *args, parts=[("scale", "shift", "gelu")], tolerance=TOLERANCE[dtype])
    with_residual = lambda x, w, b: jax.nn.relu((conv(x, w).astype("float32") + along(b)) + x.astype("float32")).astype(dtype)
    check(with_residual, *args[:2], b, parts=[("shift", "residual", "relu")], tolerance=TOLERANCE[dtype])


def test_a_result_in_a_wider_type_than_the_convolution_is_not_rounded():
    function = lambda x, w: conv(x, w).astype("float32") + along(b)
    check(function, images("bfloat16"), kernel(dtype="bfloat16"), parts=[()])
    narrow = lambda x, w: jax.nn.relu((conv(x, w) + along(b)).astype("bfloat16")).astype("float32")
    check(narrow, images(), kernel(), parts=[("shift",)])
    twice = lambda x, w: jnp.tanh(jax.nn.relu(conv(x, w).astype("float32") + along(b))).astype("bfloat16")
    check(twice, images("bfloat16"), kernel(dtype="bfloat16"), parts=[()], tolerance=4e-2)
    rounded_residual = lambda x, w, r: (conv(x, w).astype("float32") + r).astype("bfloat16")
    check(rounded_residual, images("bfloat16"), kernel(dtype="bfloat16"), images(), parts=[()])


def test_preferred_type_and_precision_are_kept():
    function = lambda x, w: jax.nn.relu(conv(x, w, preferred_element_type=jnp.float32, precision="highest"))
    check(function, images("bfloat16"), kernel(dtype="bfloat16"), parts=[("relu",)])
    (params,) = epilogues(gconv.fuse(function), images("bfloat16"), kernel(dtype="bfloat16"))
    assert params["dtype"] == jnp.float32
    assert params["precision"] == (lax.Precision.HIGHEST, lax.Precision.HIGHEST)


def test_double_precision(x64):
    function = lambda x, w, b: jax.nn.silu(conv(x, w) * 3 + along(b))
    args = images("float64"), kernel(dtype="float64"), channels(2, "float64")
    check(function, *args, parts=[("scale", "shift", "silu")], tolerance=1e-12)


@pytest.mark.parametrize("dtype", ("int32", "complex64"))
def test_types_without_an_epilogue(dtype):
    x, w = (jnp.asarray(10 * a, dtype) for a in (images(), kernel()))
    (reason,) = check(lambda x, w: conv(x, w) + 1, x, w, parts=[()])
    assert reason == f"results in {dtype}"


def test_a_type_that_gives_way_still_does():
    x, w = jnp.full((2, 6, 5, C), 0.5), jnp.full((3, 3, 4, C), 0.25)
    (reason,) = check(lambda x, w: jax.nn.relu(conv(x, w)), x, w, parts=[()])
    assert reason == "its type gives way to others, as a number's does"


# --- convolutions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", (("NCHW", "OIHW", "NCHW"), ("NHWC", "HWIO", "CWNH"), ("HNWC", "IHWO", "NHWC")))
def test_every_layout(names):
    place = lambda a, name, other: jnp.transpose(a, [other.index(c) for c in name])
    x, w, r = place(images(), names[0], "NHWC"), place(kernel(), names[1], "HWIO"), place(images(), names[2], "NHWC")
    around = [C if c == "C" else 1 for c in names[2]]

    def function(x, w, b, r):
        return jax.nn.relu(conv(x, w, dimension_numbers=names, feature_group_count=2) * 2 + b.reshape(around) + r)

    check(function, x, w, b, r, parts=[("scale", "shift", "residual", "relu")])


SHAPES = {
    "a batch of more axes": (lambda y, b: jax.nn.relu(y.reshape(2, 1, 6, 5, C) + along(b, 5)), ("shift", "relu")),
    "channels first": (lambda y, b: jax.nn.relu(jnp.moveaxis(y, 3, 1) + b.reshape(1, C, 1, 1)), ("shift", "relu")),
    "there and back": (lambda y, b: jnp.moveaxis(jnp.moveaxis(y, 3, 1) * 2, 1, 3) + along(b), ("scale", "shift")),
    "pixels in one axis": (lambda y, b: jax.nn.relu(y.reshape(2, 30, C) + along(b, 3)), ("shift", "relu")),
    "an axis of one": (lambda y, b: jnp.squeeze(y[None] + along(b, 5), 0) * 2, ("scale", "shift")),
    "all in one axis": (lambda y, b: y.reshape(2, -1) * 2, ()),
    "channels in two": (lambda y, b: y.reshape(2, 6, 5, 2, C // 2) + b.reshape(1, 1, 1, 2, C // 2), ()),
    "as many pixels as channels": (lambda y, b: y.reshape(C, 60) + b[:, None], ()),
    "a factor for each half of the channels": (lambda y, b: y.reshape(2, 6, 5, 2, 4) * b[:2].reshape(1, 1, 1, 2, 1), ()),
    "repeated": (lambda y, b: jnp.broadcast_to(jnp.moveaxis(y, 3, 1)[..., None], (2, C, 6, 5, 3)) * 2, ()),
    "a residual of another shape": (
        lambda y, b: y.reshape(2, 30, C).swapaxes(1, 2) + array(6, 2, C, 30),
        ("residual",),
    ),
    "a residual, then another shape": (lambda y, b: jax.nn.relu((y + images()).reshape(2, 30, C)), ("residual", "relu")),
}


@pytest.mark.parametrize("name", SHAPES)
def test_changes_of_shape(name):
    function, parts = SHAPES[name]
    check(lambda x, w, b: function(conv(x, w), b), images(), kernel(), b, parts=[parts])


def transposed(x, w):
    return lax.conv_transpose(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def in_one_dimension(x, w):
    names = ("NWC", "WIO", "NWC")
    return conv(x[:, 0], w[0], window_strides=(2,), dimension_numbers=names)[:, None]


KINDS = {
    "transposed": (transposed, kernel(1, C)),
    "1-D": (in_one_dimension, kernel()),
    "dilated, with strides": (partial(conv, window_strides=(2, 1), rhs_dilation=(1, 2)), kernel()),
    "depthwise": (conv, kernel(1, 1)),
    "gconv": (partial(gconv.grouped_conv, groups=2, padding=1), kernel()),
    "gconv, any batch": (lambda x, w: gconv.grouped_conv(x[None, :1], w, groups=2, padding=1)[0], kernel()),
    "gconv, transposed": (partial(gconv.grouped_conv_transpose, groups=2, strides=2), kernel()),
    "the drop-in": (
        lambda x, w: gconv.conv_general_dilated(x, w, (1, 1), "SAME", None, None, ("NHWC", "HWIO", "NHWC"), 2),
        kernel(),
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_convolution(name):
    function, w = KINDS[name]
    check(lambda x, w, b: jax.nn.relu6(function(x, w) * 2 + along(b)), images(), w, b, parts=[("scale", "shift", "relu6")])


def test_the_implementation_that_was_asked_for_runs():
    def named(x, w):
        options = dict(dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2, implementation="xla")
        y = gconv.conv_general_dilated(x, w, (1, 1), "SAME", **options)
        return jax.nn.relu(gconv.grouped_conv(jax.nn.relu(y), w, implementation="lax"))

    found = epilogues(gconv.fuse(named), images(), kernel())
    assert [params["implementation"] for params in found] == ["xla", "lax"]


def test_an_epilogue_takes_more():
    facts = dict(geometry=gconv_geometry(), dtype="float32", precision=None, implementation=None)
    begun = lambda x, w, b: epilogue.bind("y", {"x": x, "w": w}, shift=b, **facts)
    check(lambda x, w, b: jax.nn.relu(begun(x, w, b) * 2 + x), images(), kernel(), b, parts=[("scale", "residual", "relu")])
    (params,) = epilogues(gconv.fuse(lambda x, w, b: jax.nn.relu(begun(x, w, b) * 2)), images(), kernel(), b)
    assert params["parts"] == ("scale", "shift")
    done = lambda x, w, b: epilogue.bind("y", {"x": x, "w": w}, shift=b, activation=epilogue.Activation("relu"), **facts)
    fused = gconv.fuse(lambda x, w, b: done(x, w, b) * 2)
    close(fused(images(), kernel(), b), done(images(), kernel(), b) * 2, 2e-5)
    assert [row.reason for row in fused.report.convolutions] == ["has an activation already"]
    summed = lambda x, w, b: epilogue.bind("y", {"x": x, "w": w}, residual=x, **facts)
    fused = gconv.fuse(lambda x, w, b: summed(x, w, b) * 2)
    close(fused(images(), kernel(), b), summed(images(), kernel(), b) * 2, 2e-5)
    assert [row.reason for row in fused.report.convolutions] == ["followed by mul after a residual"]


def gconv_geometry():
    from gconv.geometry import geometry

    return geometry(images().shape, kernel().shape, groups=2, padding=1)[1]


def test_gradients_of_kernels_and_groups_of_images_are_left():
    gradient = lambda x, w: jax.grad(lambda w: (conv(x, w) ** 2).sum())(w) * 2
    fused = gconv.fuse(gradient)
    close(fused(images(), kernel()), gradient(images(), kernel()), 1e-4)
    assert "a kernel gradient" in [row.reason for row in fused.report.convolutions]
    x, w = array(0, 4, 6, 5, C), kernel(1, C, 6)
    (reason,) = check(lambda x, w: conv(x, w, batch_group_count=2, feature_group_count=1) + 1, x, w, parts=[()])
    assert reason == "groups in the batch"


# --- programs inside programs ----------------------------------------------------------------------------------------


def test_loops_and_conditions():
    layer = lambda x, w: jax.nn.relu(conv(x, w) + along(b))
    scanned = lambda x, ws: lax.scan(lambda x, w: (layer(x, w), x.mean()), x, ws)
    check(scanned, images(), jnp.stack([kernel(), kernel(5)]), parts=[("shift", "relu")])
    counted = lambda x, w, n: lax.fori_loop(0, n, lambda _, x: layer(x, w), x)
    check(counted, images(), kernel(), 3, parts=[("shift", "relu")])
    either = lambda x, w, yes: lax.cond(yes, layer, lambda x, w: conv(x, w), x, w)
    check(either, images(), kernel(), jnp.asarray(True), parts=[(), ("shift", "relu")])
    check(either, images(), kernel(), jnp.asarray(False), parts=[(), ("shift", "relu")])


def test_a_body_that_would_get_other_types_stays():
    class Rounded:
        def run(self, x):
            return [x.astype("bfloat16")]

    body = jax.make_jaxpr(lambda x: x + 1)(images())
    assert rewrite._retraced(body, Rounded()) is None
    assert rewrite._retraced(body, rewrite.Rewritten(program.Program(body))) is not None


def test_what_is_recomputed_or_has_rules_of_its_own_is_seen_through():
    relu_of = {
        "remat": jax.checkpoint(lambda y: jax.nn.relu(y + along(b))),
        "custom_vjp": with_a_vjp(lambda y: jnp.maximum(y + along(b), 0)),
        "custom_jvp": with_a_jvp(lambda y: jnp.maximum(y + along(b), 0)),
    }
    for function in relu_of.values():
        check(lambda x, w: function(conv(x, w)), images(), kernel(), parts=[("shift", "relu")])  # noqa: B023


def with_a_vjp(function):
    ruled = jax.custom_vjp(function)
    ruled.defvjp(lambda y: (function(y), None), lambda _, ct: (3 * ct,))
    return ruled


def with_a_jvp(function):
    ruled = jax.custom_jvp(function)
    ruled.defjvp(lambda primals, tangents: (function(*primals), 5 * tangents[0]))
    return ruled


@pytest.mark.parametrize("ruled", (with_a_vjp, with_a_jvp))
def test_derivatives_are_the_functions_own(ruled):
    straight = ruled(jax.nn.relu)
    function = lambda x, w: (straight(conv(x, w)) ** 2).sum()
    got, expected = (jax.grad(f, (0, 1))(images(), kernel()) for f in (gconv.fuse(function), function))
    close(got, expected, 1e-5)


def test_the_derivative_of_a_maximum_at_0_is_half():
    function = lambda x, w: jnp.maximum(conv(x, w), 0).sum()
    x = jnp.zeros((1, 3, 3, C))
    assert len(epilogues(gconv.fuse(function), x, kernel())) == 1
    close(jax.grad(gconv.fuse(function))(x, kernel()), jax.grad(function)(x, kernel()), 1e-6)
    assert np.abs(jax.grad(function)(x, kernel())).max() > 0


def test_a_jit_that_asks_for_a_sharding_is_kept():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    inner = jax.jit(lambda x, w: jax.nn.relu(conv(x, w)), out_shardings=sharding)
    fused = gconv.fuse(lambda x, w: inner(x, w) + 1)
    got = fused(images(), kernel())
    close(got, jax.nn.relu(conv(images(), kernel())) + 1, 2e-5)
    traced = jax.make_jaxpr(fused)(images(), kernel())
    assert len([e for e in equations(traced.jaxpr) if e.params.get("out_shardings") == (sharding,)]) == 1
    assert [row.parts for row in fused.report.convolutions] == [("relu",)]


# --- transformations -------------------------------------------------------------------------------------------------


def many(function):
    """`function` of three images, each by itself."""
    return jax.vmap(function, in_axes=(0, None, None))


TRANSFORMED = {
    "jit": (jax.jit, False),
    "vmap": (many, True),
    "grad": (lambda f: jax.grad(lambda *args: (f(*args) ** 2).sum(), (0, 1, 2)), False),
    "vmap of grad": (lambda f: many(jax.grad(lambda *args: (f(*args) ** 2).sum())), True),
    "grad of checkpoint": (lambda f: jax.grad(lambda *args: (jax.checkpoint(f)(*args) ** 2).sum()), False),
    "jvp": (lambda f: lambda *args: jax.jvp(f, args, args), False),
    "linearize": (lambda f: lambda *args: jax.linearize(f, *args)[1](*args), False),
    "forward over reverse": (
        lambda f: lambda *a: jax.jvp(jax.grad(lambda x: (f(x, *a[1:]) ** 3).sum()), a[:1], a[:1])[1],
        False,
    ),
    "scan": (lambda f: lambda xs, w, p: lax.map(lambda x: f(x, w, p), xs), True),
    "eval_shape": (lambda f: lambda *args: jnp.zeros(jax.eval_shape(f, *args).shape), False),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_transformations(name):
    transform, several = TRANSFORMED[name]
    x, ws, ps = block()
    x = array(7, 3, *x.shape) if several else x
    close(transform(gconv.fuse(bottleneck))(x, ws, ps), transform(bottleneck)(x, ws, ps), 1e-4)


def test_weights_that_are_mapped_are_right_too():
    x, ws, ps = block()
    ps = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), ps)
    mapped = lambda f: jax.vmap(f, in_axes=(None, None, 0))(x, ws, ps)
    close(mapped(gconv.fuse(bottleneck)), mapped(bottleneck), 1e-4)
    inside = lambda x, ws, ps: jax.vmap(bottleneck, in_axes=(None, None, 0))(x, ws, ps)
    close(gconv.fuse(inside)(x, ws, ps), inside(x, ws, ps), 1e-4)
    check(lambda x, ws, ps: many(bottleneck)(x, ws, ps), array(7, 3, *x.shape), ws, block()[2], parts=BOTTLENECK)


def test_without_jit_and_with_checks():
    expected = bottleneck(*block())
    with jax.disable_jit():
        close(gconv.fuse(bottleneck)(*block()), expected, 2e-5)
    with jax.debug_nans(True), jax.check_tracer_leaks(True):
        close(gconv.fuse(bottleneck)(*block()), expected, 2e-5)


def check_exported(function, x, *weights):
    """That an exported program holds XLA's operations only, and computes the same, also of any number of images."""
    export, expected = jax.export.export(jax.jit(gconv.fuse(function))), function(x, *weights)
    exported = export(x, *weights)
    assert "custom_call" not in exported.mlir_module()
    close(jax.export.deserialize(exported.serialize()).call(x, *weights), expected, 2e-5)
    (n,) = jax.export.symbolic_shape("n")
    close(export(jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype), *weights).call(x, *weights), expected, 2e-5)


def test_an_exported_program_holds_xlas_operations_only():
    check_exported(bottleneck, *block())


# Where images lie on four devices: each has some images, some rows or some channels.
SPECS = (PartitionSpec("i"), PartitionSpec(None, "i"), PartitionSpec(None, None, None, "i"))


def check_on_four_devices(function, spec, x, *weights):
    """That the fused function computes the same there, and where it has only some images, in a shard_map too."""
    mesh, run, expected = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Auto,)), gconv.fuse(function), function(x, *weights)
    placed = jax.device_put(x, NamedSharding(mesh, spec))
    close(np.asarray(run(placed, *weights)), np.asarray(expected), 2e-5)
    if spec == PartitionSpec("i"):
        mapped = jax.shard_map(run, mesh=mesh, in_specs=(spec, *(PartitionSpec() for _ in weights)), out_specs=spec)
        close(np.asarray(jax.jit(mapped)(placed, *weights)), np.asarray(expected), 2e-5)


@pytest.mark.parametrize("kind", (AxisType.Auto, AxisType.Explicit))
def test_on_a_mesh(kind):
    x, ws, ps = block()
    x = array(7, 8, *x.shape[1:])
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    got = gconv.fuse(bottleneck)(placed, ws, ps)
    close(np.asarray(got), np.asarray(bottleneck(x, ws, ps)), 2e-5)
    assert len(got.sharding.device_set) == 4
    fused = gconv.fuse(bottleneck)
    jax.eval_shape(fused, placed, ws, ps)
    left = [((), "on a mesh with explicit axes")] * 3
    rows = [(row.parts, row.reason) for row in fused.report.convolutions]
    assert rows == left if kind == AxisType.Explicit else [parts for parts, _ in rows] == BOTTLENECK


@pytest.mark.parametrize("checked", (True, False))
def test_inside_and_around_shard_map(checked):
    x, ws, ps = block()
    x = array(7, 8, *x.shape[1:])
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    specs = dict(in_specs=(PartitionSpec("data"), None, None), out_specs=PartitionSpec("data"), check_vma=checked)
    mapped = lambda f: jax.jit(jax.shard_map(f, mesh=mesh, **specs))
    fused = gconv.fuse(lambda x, ws, ps: -bottleneck(x, ws, ps))
    close(mapped(fused)(x, ws, ps), -bottleneck(x, ws, ps), 2e-5)
    assert [row.parts for row in fused.report.convolutions] == BOTTLENECK
    around = gconv.fuse(mapped(bottleneck))
    close(around(x, ws, ps), bottleneck(x, ws, ps), 2e-5)
    assert [row.reason for row in around.report.convolutions] == ["inside a shard_map"] * 3
    negated = lambda x, w: 1 - lax.fori_loop(0, 2, lambda _, x: b - conv(x, w) * -along(b), x)
    specs["in_specs"] = specs["in_specs"][:2]
    fused = gconv.fuse(negated)
    with jax.numpy_rank_promotion("allow"):
        close(mapped(fused)(x, kernel()), negated(x, kernel()), 1e-3)
    assert [row.parts for row in fused.report.convolutions] == [("scale", "shift")]


# --- arguments and results -------------------------------------------------------------------------------------------


def test_all_kinds_of_arguments_and_results():
    def function(tree, key, flag, how, activation, nothing=None, *, factor, mode="same"):
        assert flag is True and how == "f" and mode == "other" and nothing is None
        y = activation(conv(tree["x"], tree["w"][0]) * factor)
        drawn = jax.random.normal(key, (2,))
        return {"y": y, "x": tree["x"], "none": None, "drawn": drawn, "factor": factor, "const": 3.0, "key": key}

    args = ({"x": images(), "w": [kernel()]}, jax.random.key(1), True, "f", jax.nn.relu)
    got = gconv.fuse(function)(*args, factor=2.5, mode="other")
    expected = jax.jit(function, static_argnums=(2, 3, 4), static_argnames="mode")(*args, factor=2.5, mode="other")
    assert (jax.random.key_data(got.pop("key")) == jax.random.key_data(expected.pop("key"))).all()
    close(got, expected, 2e-5)


def test_options_are_told_apart_and_traced_once():
    traced = []

    @gconv.fuse
    def function(x, w, train):
        traced.append(train)
        return jax.nn.relu(conv(x, w)) if train is True else conv(x, w)

    for train in (True, False, 1, True, False, 1):
        function(images(), kernel(), train)
    assert [*map(repr, traced[:2])] == ["True", "False"] and len(traced) == 3
    function(images(n=1), kernel(), True)
    assert len(traced) == 4


def test_functions_without_convolutions():
    assert gconv.fuse(lambda: None)() is None
    assert gconv.fuse(lambda: 2)() == 2
    close(gconv.fuse(lambda x: (x, x, jnp.sin(x)))(images()), (images(), images(), jnp.sin(images())), 1e-6)
    assert str(gconv.fuse(lambda: 2).report).endswith("nothing was changed: it has not been called yet")


def test_a_decorated_method_and_its_name():
    class Layer:
        def __init__(self):
            self.w = kernel()

        @gconv.fuse
        def apply(self, x):
            """Of x."""
            return jax.nn.relu(conv(x, self.w))

    layer = Layer()
    close(layer.apply(images()), jax.nn.relu(conv(images(), layer.w)), 2e-5)
    assert Layer.apply.__name__ == "apply" and Layer.apply.__doc__ == "Of x."
    assert [row.parts for row in Layer.apply.report.convolutions] == [("relu",)]


def test_constants_are_closed_over_also_those_of_an_outer_trace():
    w = kernel()
    check(lambda x: jax.nn.relu(conv(x, w) + along(b)), images(), parts=[("shift", "relu")])
    outer = lambda fuse: jax.grad(lambda w: fuse(lambda x: jax.nn.relu(conv(x, w) + along(b)))(images()).sum())(w)
    close(outer(gconv.fuse), outer(lambda f: f), 1e-4)


def test_what_cannot_be_called_or_passed():
    with pytest.raises(TypeError, match="`function` must be a function of arrays, got int"):
        gconv.fuse(3)
    with pytest.raises(TypeError, match="got the class dict"):
        gconv.fuse(dict)
    with pytest.raises(TypeError, match=r"args\[1\]\['a'\] is neither an array nor hashable: set"):
        gconv.fuse(lambda x, s: x)(images(), {"a": {1}})


def test_arguments_that_are_changed_in_place_are_refused():
    def update(x, state):
        state["mean"] = x.mean()
        return x

    with pytest.raises(ValueError, match=r"changes args\[1\]\['mean'\] in place"):
        gconv.fuse(update)(images(), {"mean": jnp.zeros(())})
    with pytest.raises(ValueError, match="changes an argument's structure in place"):
        gconv.fuse(update)(images(), {})
    close(gconv.fuse(lambda x, state: update(x, dict(state)))(images(), {}), images())
    close(gconv.fuse(lambda x, state: (update(x, state), state))(images(), {"mean": 0.0})[1]["mean"], images().mean(), 1e-6)


def test_references_are_left_as_they_are():
    ref = jax.new_ref(jnp.zeros(()))

    def counting(x, w):
        ref[...] += 1
        return jax.nn.relu(conv(x, w))

    fused = gconv.fuse(counting)
    close(fused(images(), kernel()), jax.nn.relu(conv(images(), kernel())), 2e-5)
    assert float(ref[...]) == 1
    assert fused.report.refused == "it reads or writes references"


def test_callbacks_with_effects_run_once():
    from jax.experimental import io_callback

    seen = []

    def called(x, w):
        io_callback(lambda x: seen.append(float(x)), None, x[0, 0, 0, 0], ordered=True)
        return jax.nn.relu(conv(x, w))

    fused = gconv.fuse(called)
    close(fused(images(), kernel()), jax.nn.relu(conv(images(), kernel())), 2e-5)
    jax.effects_barrier()
    assert seen == [float(images()[0, 0, 0, 0])]


def test_the_report_in_words():
    fused = gconv.fuse(lambda x, w, v: (jax.nn.relu(conv(x, w) + along(b)), lax.cumsum(conv(x, v), 1)))
    fused(images(), kernel(), kernel(1, 1))
    assert str(fused.report).splitlines() == [
        "1 of 2 convolutions take in what follows them",
        "  y  window (3, 3), 2 groups of 4 -> 4 channels  shift, relu",
        "  y  window (3, 3), 8 groups of 1 -> 1 channels  nothing: followed by cumsum",
    ]
