"""Convolutions that follow each other, row by row: which do, what they compute, and in which modes."""

import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import nnx
from foreign import normal
from jax import lax
from jax.experimental import jet
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from process import printed, printed_on_any_threads
from test_fuse import TRANSFORMED, check_exported, close

import gconv
from gconv import native
from gconv.fusion import cascade

built = pytest.mark.skipif(native.load()[1] is not None, reason=f"native: {native.load()[1]}")
TOLERANCE = {"float64": 1e-12, "float32": 2e-5, "bfloat16": 6e-2, "float16": 8e-3}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """What lies between may be small here."""
    monkeypatch.setattr(cascade, "LEAST", 1)


def array(seed: int, *shape, dtype="float32"):
    return jnp.asarray(normal(seed, *shape), dtype)


def conv(x, w, **options):
    groups = x.shape[-1] // w.shape[-2]
    names = ("NHWC", "HWIO", "NHWC")
    options = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": names, "feature_group_count": groups} | options
    return lax.conv_general_dilated(x, w, **options)


def relu6(x):
    return jnp.clip(x, 0, 6)


def block(x, ws, ps, *, first=True, last=True, adds=False, **options):
    """MobileNetV2's: expand, convolve each channel, reduce; the scale and the shift of a batch norm after each."""
    y = x
    if first:
        y = jax.nn.relu6(conv(y, ws[0]) * ps[0][0] + ps[0][1])
    y = jax.nn.relu6(conv(y, ws[1], **options) * ps[1][0] + ps[1][1])
    if last:
        y = conv(y, ws[2]) * ps[2][0] + ps[2][1]
    return x + y if adds else y


def arguments(n=2, h=19, w=17, channels=13, wide=41, window=(3, 3), results=11, dtype="float32"):
    ws = [array(1, 1, 1, channels, wide), array(2, *window, 1, wide), array(3, 1, 1, wide, results)]
    ws = [(a / float(np.prod(a.shape[:-1])) ** 0.5).astype(dtype) for a in ws]
    ps = [array(4 + i, 2, 1, 1, 1, a.shape[-1], dtype=dtype) for i, a in enumerate(ws)]
    return array(0, n, h, w, channels, dtype=dtype), ws, ps


def calls(function, *args) -> tuple[int, int]:
    """How many calls of cascades, and of single convolutions, a lowered program holds."""
    text = jax.jit(function).lower(*args).as_text()
    cascades = text.count(f"custom_call @{native.CASCADE_TARGET}")
    return cascades, text.count(f"custom_call @{native.TARGET}(") + text.count(f"custom_call @{native.FROZEN_TARGET}(")


def check(function, *args, cascades=1, tolerance=2e-5):
    fused = gconv.fuse(function)
    close(fused(*args), jax.jit(function)(*args), tolerance)
    assert fused.report.cascades == cascades, fused.report
    return fused


# --- values ----------------------------------------------------------------------------------------------------------

KINDS = {
    "whole": {},
    "with a residual": {"adds": True},
    "strides": {"window_strides": (2, 2)},
    "more strides than window": {"window_strides": (4, 3)},
    "dilation": {"rhs_dilation": (2, 3)},
    "no padding": {"padding": "VALID"},
    "much padding": {"padding": ((5, 4), (0, 6))},
    "cropped": {"padding": ((-2, -1), (1, -3))},
    "without the first": {"first": False},
    "without the last": {"last": False},
}


def expected_of(x, ws, ps, *, first=True, last=True, adds=False, **options):
    """The same in loops, float64."""
    strides, dilation = options.get("window_strides", (1, 1)), options.get("rhs_dilation", (1, 1))
    pads = options.get("padding")
    if pads is None:  # SAME
        reach = [(k - 1) * d + 1 for k, d in zip(ws[1].shape[:2], dilation, strict=True)]
        total = [max(0, (-(-n // s) - 1) * s + r - n) for n, s, r in zip(x.shape[1:3], strides, reach, strict=True)]
        pads = [(t // 2, t - t // 2) for t in total]
    pads = [(0, 0)] * 2 if pads == "VALID" else pads
    point = dict(groups=1, strides=(1, 1), pads=[(0, 0)] * 2, dilation=(1, 1))
    y = np.asarray(x, np.float64)
    wide = lambda p: np.asarray(p, np.float64)
    source = y
    if first:
        y = np.clip(oracle.conv(y, ws[0], **point) * wide(ps[0][0]) + wide(ps[0][1]), 0, 6)
    crop = [(max(0, -lo), max(0, -hi)) for lo, hi in pads]
    y = y[:, crop[0][0] : y.shape[1] - crop[0][1], crop[1][0] : y.shape[2] - crop[1][1]]
    pads = [(max(0, lo), max(0, hi)) for lo, hi in pads]
    each = dict(groups=y.shape[-1], strides=strides, pads=pads, dilation=dilation)
    y = np.clip(oracle.conv(y, ws[1], **each) * wide(ps[1][0]) + wide(ps[1][1]), 0, 6)
    if last:
        y = oracle.conv(y, ws[2], **point) * wide(ps[2][0]) + wide(ps[2][1])
    return source + y if adds else y


@pytest.mark.parametrize("sizes", ({}, {"n": 1, "h": 1, "w": 1}, {"h": 83, "w": 9, "wide": 33, "window": (5, 2)}), ids=range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_against_numpy(kind, sizes):
    options = KINDS[kind]
    results = 13 if options.get("adds") else 11
    if kind == "without the first":
        sizes = sizes | {"channels": sizes.get("wide", 41)}
    x, ws, ps = arguments(**sizes, results=results)
    if sizes.get("h", 9) == 1 and kind in ("no padding", "cropped"):
        pytest.skip("nothing is left of one pixel")
    function = partial(block, **options)
    fused = check(function, x, ws, ps)
    few = x.shape[1] == 1 or kind == "more strides than window"  # so few products that XLA computes some of the links
    if native.load()[0] is not None and not few:
        assert calls(fused, x, ws, ps) == (1, 0)
    expected = expected_of(x, ws, ps, **options)
    np.testing.assert_allclose(fused(x, ws, ps), expected, rtol=0, atol=3e-6 * max(np.abs(expected).max(), 1))


@built
def test_it_is_one_call_of_a_kernel():
    args = arguments()
    assert calls(gconv.fuse(block), *args) == (1, 0)
    assert calls(gconv.fuse(partial(block, first=False)), *arguments(channels=41)) == (1, 0)
    closed = gconv.fuse(lambda x: block(x, *args[1:]))
    assert calls(closed, args[0]) == (1, 0)
    assert native.FROZEN_CASCADE_TARGET in jax.jit(closed).lower(args[0]).as_text()
    close(closed(args[0]), block(*args), 2e-5)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_every_type(dtype, x64):
    """What lies between is rounded as it is where it is an array."""
    args = arguments(dtype=dtype, h=23)
    fused = check(block, *args, tolerance=TOLERANCE[dtype])
    cascade.LEAST = 1 << 60
    apart = gconv.fuse(block)
    close(fused(*args), apart(*args), TOLERANCE[dtype] / 10)
    assert apart.report.cascades == 0


def test_layers_of_gconv_and_activations():
    def function(x, k, v):
        y = gconv.grouped_conv(x, k, activation="silu")
        return gconv.grouped_conv(y, v, activation="gelu")

    args = array(0, 2, 21, 18, 24), array(1, 3, 3, 1, 24), array(2, 1, 1, 24, 17)
    fused = check(function, *args)
    if native.load()[0] is not None:
        assert calls(fused, *args) == (1, 0)


def test_an_infinity_and_a_nan_stay_where_they_are():
    x, ws, ps = arguments(h=30)
    x = x.at[0, 11, 5, 1].set(jnp.inf).at[1, 29, 0, 2].set(jnp.nan)
    apart, fused = jax.jit(block)(x, ws, ps), gconv.fuse(block)(x, ws, ps)
    np.testing.assert_array_equal(np.isfinite(fused), np.isfinite(apart))
    assert 0 < (~np.isfinite(fused)).sum() < fused.size / 10
    kept = np.isfinite(apart)
    np.testing.assert_allclose(np.asarray(fused)[kept], np.asarray(apart)[kept], atol=2e-5)


def test_several_in_a_network():
    args = arguments(results=13)

    def network(x, ws, ps):
        for _ in range(3):
            x = block(x, ws, ps, adds=True)
        return x

    fused = check(network, *args, cascades=3, tolerance=1e-4)
    assert "groups of convolutions that run row by row: 3" in str(fused.report)
    looped = lambda *args: lax.fori_loop(0, 3, lambda _, x: block(x, *args[1:], adds=True), args[0])
    check(looped, *args, cascades=1, tolerance=1e-4)


def test_channel_wise_and_pointwise_in_turns():
    """As in MobileNetV1. Each belongs to one group only."""

    def network(x, ws, vs):
        for w, v in zip(ws, vs, strict=True):
            x = jax.nn.relu(conv(jax.nn.relu(conv(x, w) + 1), v) + 1)
        return x

    args = array(0, 2, 19, 17, 24), array(1, 3, 3, 3, 1, 24) / 3, array(2, 3, 1, 1, 24, 24) / 5
    fused = check(network, *args, cascades=3)
    expand = lambda x, ws, vs: network(jax.nn.relu(conv(x, vs[0]) + 1), ws, vs)
    check(expand, *args, cascades=3)
    each_after_each = lambda x, ws, vs: jax.nn.relu(conv(jax.nn.relu(conv(jax.nn.relu(conv(x, vs[0])), ws[0])), ws[1]))
    check(each_after_each, *args, cascades=1)
    if native.load()[0] is not None:
        assert calls(fused, *args) == (3, 0)


def test_a_networks_first_convolution():
    def first(x, u, w, v):
        y = jax.nn.relu6(conv(x, u, window_strides=(2, 2)) + 1)
        return conv(jax.nn.relu6(conv(y, w) + 1), v) + 1

    args = array(0, 2, 43, 38, 3), array(1, 3, 3, 3, 24) / 5, array(2, 3, 3, 1, 24) / 3, array(3, 1, 1, 24, 16) / 5
    fused = check(first, *args)
    if native.load()[0] is not None:
        assert calls(fused, *args) == (1, 0)


# --- what stays apart ------------------------------------------------------------------------------------------------


def squeezed(x, ws, ps):
    y = jax.nn.relu6(conv(jax.nn.relu6(conv(x, ws[0])), ws[1]))
    return conv(y * y.mean((1, 2), keepdims=True), ws[2])


def kept(x, ws, ps):
    wide = jax.nn.relu6(conv(x, ws[0]))
    return conv(jax.nn.relu6(conv(wide, ws[1])), ws[2]), wide


def added_between(x, ws, ps):
    wide = jax.nn.relu6(conv(x, ws[0]))
    return jax.nn.relu6(conv(jax.nn.relu6(conv(wide, ws[1]) + wide), ws[2]))


def summed(x, ws, ps):
    wide = jax.nn.relu6(conv(x, ws[0]))
    return jax.nn.relu6(conv(wide, ws[1])), wide.mean((1, 2))


def pooled(x, ws, ps):
    wide = jax.nn.relu6(conv(x, ws[0]))
    return jax.nn.relu6(conv(lax.reduce_window(wide, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "SAME"), ws[1]))


READERS = ((squeezed, 1), (kept, 1), (added_between, 0), (summed, 0), (pooled, 0))


@pytest.mark.parametrize(("function", "cascades"), READERS, ids=[function.__name__ for function, _ in READERS])
def test_what_somebody_else_reads_is_an_array(function, cascades):
    check(function, *arguments(), cascades=cascades)


def test_two_images_of_one_block():
    """The second convolution's kernel is read twice, what lies between once each."""
    twice = lambda x, ws, ps: block(x, ws, ps) - block(-x, ws, ps)
    check(twice, *arguments(), cascades=2)


def test_what_is_not_pointwise_or_not_channel_wise():
    x, ws, ps = arguments()
    both = lambda x, w, v: jax.nn.relu(conv(jax.nn.relu(conv(x, w)), v))
    check(both, x, array(1, 3, 3, 13, 8), array(2, 3, 3, 1, 8), cascades=0)
    check(both, x, array(1, 1, 1, 13, 8), array(2, 3, 3, 1, 16), cascades=0)
    strided = lambda x, w, v: jax.nn.relu(conv(jax.nn.relu(conv(x, w, window_strides=(2, 2))), v))
    check(strided, x, ws[0], ws[1], cascades=0)


def test_other_layouts_and_ranks():
    def channels_first(x, w, v):
        names = ("NCHW", "HWIO", "NCHW")
        y = jax.nn.relu(lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=names))
        y = lax.conv_general_dilated(y, v, (1, 1), "SAME", dimension_numbers=names, feature_group_count=8)
        return jax.nn.relu(y)

    check(channels_first, array(0, 2, 6, 9, 7), array(1, 1, 1, 6, 8), array(2, 3, 3, 1, 8), cascades=0)
    line = lambda x, w, v: jax.nn.relu(gconv.grouped_conv(jax.nn.relu(gconv.grouped_conv(x, w)), v))
    check(line, array(0, 2, 9, 6), array(1, 1, 6, 8), array(2, 3, 1, 8), cascades=0)
    check(line, array(0, 2, 5, 4, 3, 6), array(1, 1, 1, 1, 6, 8), array(2, 3, 3, 3, 1, 8), cascades=0)


def test_what_is_small_stays_apart():
    args = arguments()
    cascade.LEAST = 2 * (19 * 17 * 41 * 4) * 2
    check(block, *args)
    cascade.LEAST += 1
    check(block, *args, cascades=0)


@pytest.mark.parametrize("options", ({}, {"rhs_dilation": (4, 1)}, {"window_strides": (2, 2)}), ids=range(3))
def test_what_has_long_rows_stays_apart(options, monkeypatch):
    function, args = partial(block, **options), arguments()
    rows, width = (9 if "rhs_dilation" in options else 3), (9 if "window_strides" in options else 17)
    monkeypatch.setattr(cascade, "NEAR", (rows * 17 + width) * 41 * 4)
    check(function, *args)
    cascade.NEAR -= 1
    check(function, *args, cascades=0)


# --- modes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRANSFORMED)
def test_transformations(name):
    transform, several = TRANSFORMED[name]
    x, ws, ps = arguments(h=12)
    x = array(7, 3, *x.shape) if several else x
    close(transform(gconv.fuse(block))(x, ws, ps), transform(block)(x, ws, ps), 1e-4)


def primitive(x, *operands, implementation=None):
    links = tuple(
        cascade.Link(g, None, implementation, False, ("shift",), None)
        for g in (
            gconv.geometry.geometry(x.shape, operands[0].shape)[1],
            gconv.geometry.geometry((*x.shape[:-1], 41), operands[2].shape, groups=41, padding="same")[1],
        )
    )
    return cascade.bind(x, links, [[*operands[:2]], [*operands[2:]]])


def test_the_primitive_alone():
    """Outside of `fuse`, whose derivatives are those of the function."""
    x, ws, ps = arguments()
    operands = (x, ws[0], ps[0][1].reshape(-1), ws[1], ps[1][1].reshape(-1))
    plain = lambda x, w, s, v, t: conv(conv(x, w) + s.reshape(1, 1, 1, -1), v) + t.reshape(1, 1, 1, -1)
    close(primitive(*operands), plain(*operands), 2e-5)
    loss = lambda f: lambda *a: (f(*a) ** 2).sum()
    every = tuple(range(5))
    close(jax.jit(jax.grad(loss(primitive), every))(*operands), jax.grad(loss(plain), every)(*operands), 1e-4)
    tangents = tuple(2 * a for a in operands)
    twice = lambda f: jax.jvp(jax.grad(loss(f)), operands, tangents)[1]
    close(twice(primitive), twice(plain), 1e-4)
    series = tuple([a, a] for a in operands)
    for got, expected in zip(*(jet.jet(f, operands, series) for f in (primitive, plain)), strict=True):
        close(got, expected, 1e-4)
    several = (jnp.stack([x, 2 * x]), operands[1], jnp.stack([operands[2]] * 2), *operands[3:])
    mapped = lambda f: jax.vmap(f, (0, None, 0, None, None))(*several)
    close(mapped(primitive), mapped(plain), 2e-5)


def test_without_jit_and_with_checks():
    args = arguments()
    expected = block(*args)
    with jax.disable_jit():
        close(gconv.fuse(block)(*args), expected, 2e-5)
    with jax.debug_nans(True), jax.check_tracer_leaks(True):
        close(gconv.fuse(block)(*args), expected, 2e-5)


@built
def test_no_images():
    x, ws, ps = arguments(n=0)
    operands = ws[0], ps[0][1].reshape(-1), ws[1], ps[1][1].reshape(-1)
    for implementation in (None, "native"):
        assert primitive(x, *operands, implementation=implementation).shape == (0, 19, 17, 41)


@built
def test_a_program_of_the_primitive_alone_has_the_kernels_as_arguments():
    """Such programs are shared: one may not keep the kernels of another, also where a sample of them agrees."""
    x, ws, ps = arguments()
    others = [ws[0], ws[1], ws[2].at[0, 0, 20, 5].add(100)]
    with jax.disable_jit():
        for kernels in (ws, others):
            close(gconv.fuse(lambda x, kernels=kernels: block(x, kernels, ps))(x), block(x, kernels, ps), 2e-5)


def test_an_exported_program_holds_xlas_operations_only():
    check_exported(block, *arguments())


IMAGES = PartitionSpec("i")
MESHES = ((AxisType.Auto, IMAGES), (AxisType.Auto, PartitionSpec(None, "i")), (AxisType.Explicit, IMAGES))


@pytest.mark.parametrize(("kind", "spec"), MESHES, ids=str)
def test_on_four_devices(kind, spec):
    x, ws, ps = arguments(n=8, h=20)
    mesh = jax.make_mesh((4,), ("i",), axis_types=(kind,))
    placed = jax.device_put(x, NamedSharding(mesh, spec))
    close(np.asarray(gconv.fuse(block)(placed, ws, ps)), np.asarray(block(x, ws, ps)), 2e-5)


@built
def test_kernels_that_are_asked_for_split_over_devices():
    """No device gets the images of the others."""
    each = lambda x, w: jax.nn.relu(gconv.grouped_conv(x, w, padding="same", implementation="native") + 1)
    two = lambda x, w, v: each(each(x, w), v)
    x, w, v = array(0, 8, 19, 17, 24), array(1, 3, 3, 1, 24), array(2, 1, 1, 24, 24)
    mesh = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Auto,))
    placed = jax.device_put(x, NamedSharding(mesh, IMAGES))
    for function, kernels in ((each, (w,)), (two, (w, v))):
        compiled = jax.jit(gconv.fuse(function)).lower(placed, *kernels).compile()
        text = compiled.as_text()
        assert f'custom_call_target="{native.TARGET}"' in text and "all-gather" not in text
        close(np.asarray(compiled(placed, *kernels)), np.asarray(function(x, *kernels)), 2e-5)


def test_of_each_device_its_images():
    x, ws, ps = arguments(n=8, h=20)
    mesh = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(gconv.fuse(block), mesh=mesh, in_specs=(IMAGES, None, None), out_specs=IMAGES)
    close(np.asarray(jax.jit(mapped)(x, ws, ps)), np.asarray(block(x, ws, ps)), 2e-5)


def test_without_kernels(monkeypatch):
    args = arguments(h=20)
    if native.load()[0] is not None:
        assert calls(gconv.fuse(block), *args) == (1, 0)
    monkeypatch.setattr(native, "load", lambda: (None, "there are none"))
    fused = check(block, *args)
    assert calls(fused, *args) == (0, 0)


def test_the_implementation_that_was_asked_for_runs():
    x, ws, _ = arguments()

    def function(x, w, v):
        y = jax.nn.relu(gconv.grouped_conv(x, w, implementation="lax"))
        return jax.nn.relu(gconv.grouped_conv(y, v, implementation="lax"))

    fused = check(function, x, ws[0], ws[1])
    assert calls(fused, x, ws[0], ws[1]) == (0, 0)


@built
def test_another_kernel_by_the_environment():
    program = """
import jax, jax.numpy as jnp, numpy as np, gconv
from gconv.fusion import cascade
cascade.LEAST = 1
r = np.random.default_rng(0)
x, w, v = (jnp.asarray(r.standard_normal(s), "float32") for s in ((2, 19, 17, 16), (1, 1, 16, 40), (3, 3, 1, 40)))
f = lambda x, w, v: jax.nn.relu(gconv.grouped_conv(jax.nn.relu(gconv.grouped_conv(x, w)), v))
g = gconv.fuse(f)
np.testing.assert_allclose(g(x, w, v), jax.jit(f)(x, w, v), atol=2e-5)
assert g.report.cascades == 1
"""
    width = 16 if native.instruction_set() == "baseline" else 32
    for kernel in ("narrow", "wide", "rows"):
        printed(program, GCONV_NATIVE_KERNEL=f"{kernel}.{width}")


# --- frozen ----------------------------------------------------------------------------------------------------------


class Network(nnx.Module):
    def __init__(self, rngs):
        self.expand = nnx.Conv(24, 48, (1, 1), rngs=rngs)
        self.each = nnx.Conv(48, 48, (3, 3), feature_group_count=48, rngs=rngs)
        self.reduce = nnx.Conv(48, 24, (1, 1), rngs=rngs)

    def __call__(self, x):
        for _ in range(2):
            x = x + self.reduce(nnx.relu(self.each(nnx.relu(self.expand(x)))))
        return x


@built
def test_frozen_kernels_serve_calls_from_several_threads():
    model, x = Network(nnx.Rngs(0)), array(0, 2, 40, 40, 24)
    expected = model(x)
    fused = gconv.fuse(model, frozen=True)
    run = jax.jit(fused).lower(x).compile()
    assert fused.report.cascades == 2
    found: list = [None] * 8

    def call(i):
        found[i] = np.asarray(run(x))

    threads = [threading.Thread(target=call, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    close(found[0], np.asarray(expected), 1e-4)
    assert all((a == found[0]).all() for a in found)
    model.expand.kernel[...] = model.expand.kernel[...] * 2
    assert (np.asarray(run(x)) == found[0]).all()


PROGRAM = """
import hashlib, json, jax, jax.numpy as jnp, numpy as np, gconv
from gconv.fusion import cascade
cascade.LEAST = 1
hashes = []
for n, h, w, c, s in ((1, 57, 40, 24, 1), (3, 30, 31, 33, 2), (2, 7, 7, 96, 1)):
    r = np.random.default_rng(c)
    make = lambda *shape: jnp.asarray(r.standard_normal(shape), "float32")
    x, k, l, m = make(3, h, w, c)[:n], make(1, 1, c, 4 * c), make(3, 3, 1, 4 * c), make(1, 1, 4 * c, c)
    f = gconv.fuse(lambda x: gconv.grouped_conv(gconv.grouped_conv(gconv.grouped_conv(x, k, activation="relu"), l, strides=s,
        padding="same", activation="relu"), m))
    hashes.append(hashlib.sha256(np.asarray(f(x)).tobytes()).hexdigest())
    assert f.report.cascades == 1
    for i in range(n):  # each image alone
        assert (np.asarray(f(x[i : i + 1])) == np.asarray(f(x))[i : i + 1]).all()
print(json.dumps(hashes))
"""


@built
def test_the_bits_depend_on_no_number_of_threads_and_on_no_other_image():
    assert len({*printed_on_any_threads(PROGRAM)}) == 3


# --- the door --------------------------------------------------------------------------------------------------------

LINKS = (
    # input, output, window, strides, low, dilation; groups, channels, filters, plain, parts, activation
    [1, 6, 5, 1, 6, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 3, 8, 0, 0, 0],
    [1, 6, 5, 1, 6, 5, 1, 3, 3, 1, 1, 1, 0, 1, 1, 1, 1, 1, 8, 1, 1, 0, 2, 1],
)


def call(*, x=(2, 6, 5, 3), kernel=(1, 1, 3, 8), shift=(8,), result=(2, 6, 5, 8), **options):
    dtype, links, number = options.get("dtype", "float32"), options.get("links", 2), options.get("number")
    native.register_kernels()
    numbers = np.array(LINKS, np.int64)
    if number:
        numbers[number[0]] = number[1]
    operands = [jnp.ones(x, dtype), jnp.ones(kernel), jnp.ones((3, 3, 1, 8)), *([jnp.ones(shift)] if shift else [])]
    operands += options.get("more", [])
    run = jax.ffi.ffi_call(native.CASCADE_TARGET, jax.ShapeDtypeStruct(result, "float32"))
    return run(*operands, numbers=numbers.reshape(-1)[: 24 * links], slopes=np.zeros(links))


@built
def test_a_well_formed_call_runs():
    np.testing.assert_array_equal(call()[:, 1:-1, 1:-1], np.full((2, 4, 3, 8), 28.0))


@built
@pytest.mark.parametrize(
    ("wrong", "message"),
    (
        ({"x": (2, 6, 15)}, "four axes"),
        ({"x": (0, 6, 5, 3)}, "not be empty"),
        ({"x": (2, 5, 5, 3)}, "does not fit"),
        ({"kernel": (1, 1, 3, 9)}, "does not fit"),
        ({"shift": (7,)}, "does not fit"),
        ({"shift": None}, "is missing"),
        ({"more": [jnp.ones(3)]}, "more operands"),
        ({"result": (2, 6, 5, 9)}, "does not fit"),
        ({"dtype": "int32"}, "elements must be"),
        ({"dtype": "bfloat16"}, "does not fit"),
        ({"links": 1}, "two links or three"),
        ({"number": ((0, 0), 2)}, "size 1"),
        ({"number": ((1, 1), 7)}, "not the result before it"),
        ({"number": ((1, 18), 4)}, "not the result before it"),
        ({"number": ((0, 22), 4)}, "the parts must be"),
        ({"number": ((1, 22), 8)}, "the parts must be"),
        ({"number": ((1, 23), 11)}, "no activation"),
        ({"number": ((1, 10), 0)}, "strides must lie"),
        ({"number": ((1, 7), 1 << 40)}, "window sizes must lie"),
        ({"number": ((1, 4), 0)}, "nothing may be empty"),
    ),
)
def test_a_malformed_call_is_an_error(wrong, message):
    with pytest.raises((ValueError, RuntimeError), match=f"gconv: .*{message}"):
        jax.block_until_ready(call(**wrong))
