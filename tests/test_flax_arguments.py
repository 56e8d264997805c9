"""`input_dilation`, `mask` and `preferred_element_type`: what Flax's own layers mean by them, and NumPy's loops."""

from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import linen as nn
from flax import nnx
from jax.test_util import check_grads

import gconv
from gconv.geometry import geometry

pytestmark = pytest.mark.usefixtures("lenient")  # Flax's layers mix ranks and types
TOLERANCE = {"float32": 2e-5, "bfloat16": 2e-2}


@dataclass(frozen=True)
class Problem:
    """A random convolution that Flax's `Conv` takes, too."""

    seed: int
    spatial: tuple
    window: tuple
    groups: int
    channels: int
    filters: int
    options: dict = field(hash=False)
    flax: dict = field(hash=False)
    dtype: str
    kernel_dtype: str

    @property
    def features(self) -> tuple[int, int]:
        return self.groups * self.channels, self.groups * self.filters

    def array(self, i: int, shape, dtype="float32"):
        return jnp.asarray(np.random.default_rng(100 * self.seed + i).normal(size=shape), dtype)

    @property
    def x(self):
        return self.array(0, (2, *self.spatial, self.features[0]), self.dtype)

    def __str__(self) -> str:
        return f"{self.seed}-{len(self.window)}d-{self.dtype}"


def problem(seed: int, transposed: bool = False) -> Problem:
    rng = np.random.default_rng(seed)
    pick = lambda *values: values[int(rng.integers(len(values)))]
    rank = pick(1, 1, 2, 2, 3)
    each = lambda low, high: tuple(int(n) for n in rng.integers(low, high, rank))
    groups, channels, filters = 1 if transposed else pick(1, 2, 3), pick(1, 2, 4), pick(1, 2, 3)
    window, use_bias, dtypes = each(1, 5), pick(True, False), ("float32", "bfloat16")
    dtype, kernel_dtype = pick(*dtypes), pick(*dtypes)
    strides, dilation = pick((1,) * rank, each(1, 4)), each(1, 3)
    pads = tuple((int(a), int(b)) for a, b in rng.integers(3, 7, (rank, 2)))
    shape = (*window, *((filters, channels) if transposed else (channels, groups * filters)))
    kinds = (None, rng.random(shape) > 0.4, rng.normal(size=shape).astype("float32"))
    common = dict(strides=strides, use_bias=use_bias, mask=pick(*kinds), param_dtype=kernel_dtype)
    common["preferred_element_type"] = pick(None, "float32")
    ours, theirs = dict(dilation=dilation, **common), dict(kernel_dilation=dilation, **common)
    if not transposed:
        ours["input_dilation"] = theirs["input_dilation"] = each(1, 4)
        ours["padding"] = theirs["padding"] = pads
        theirs["feature_group_count"] = groups
    return Problem(seed, each(4, 8), window, groups, channels, filters, ours, theirs, dtype, kernel_dtype)


def loss(layer, x, ct):
    return (layer(x).astype("float32") * ct).sum()


def same(ours, theirs, dtype, wide=None) -> None:
    """The type and shape of theirs, and its numbers: of half precision those that float32 gives, `wide`, where it is given.

    Flax sums the gradient of a bias in bfloat16.
    """
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    expected = np.asarray(theirs if wide is None else wide, "float64")
    scale = max(np.abs(expected).max(initial=0), 1.0)
    np.testing.assert_allclose(np.asarray(ours, "float64") / scale, expected / scale, rtol=0, atol=TOLERANCE[dtype])


def in_float32(layer):
    """A copy of a layer of Flax whose parameters are float32."""
    graph, state = nnx.split(layer)
    return nnx.merge(graph, jax.tree.map(lambda a: a.astype("float32"), state))


def narrowest(p: Problem) -> str:
    return "bfloat16" if "bfloat16" in (p.dtype, p.kernel_dtype) else "float32"


@pytest.mark.parametrize("p", [problem(seed) for seed in range(12)], ids=str)
def test_random_layers_are_those_of_nnx_conv(p):
    theirs = nnx.Conv(*p.features, p.window, **p.flax, bias_init=nnx.initializers.normal(), rngs=nnx.Rngs(p.seed))
    ours = gconv.nnx.GroupedConv(p.features[0], p.window, p.filters, p.groups, **p.options, rngs=nnx.Rngs(0))
    nnx.update(ours, nnx.state(theirs, nnx.Param))
    assert {*nnx.to_pure_dict(nnx.state(ours))} == {*nnx.to_pure_dict(nnx.state(theirs))}, "the same checkpoints, mask included"
    y = theirs(p.x)
    same(ours(p.x), y, narrowest(p))
    same(nnx.jit(lambda m, x: m(x))(ours, p.x), y, narrowest(p))
    ct, gradients = p.array(9, y.shape), nnx.jit(nnx.grad(loss, argnums=(0, 1)))
    (found, dx), (expected, expected_dx) = (gradients(m, p.x, ct) for m in (ours, theirs))
    wide, wide_dx = gradients(in_float32(theirs), p.x.astype("float32"), ct)
    same(dx, expected_dx, narrowest(p), wide_dx)
    for name in found:
        same(found[name][...], expected[name][...], narrowest(p), wide[name][...])


@pytest.mark.parametrize("p", [problem(seed) for seed in range(100, 104)], ids=str)
def test_random_layers_are_those_of_linens_conv(p):
    flax = {k: v for k, v in p.flax.items() if k != "preferred_element_type"}  # which Linen's Conv has not
    options = {k: v for k, v in p.options.items() if k != "preferred_element_type"}
    theirs = nn.Conv(p.features[1], p.window, **flax)
    ours = gconv.linen.GroupedConv(p.window, p.filters, p.groups, **options)
    variables = theirs.init(jax.random.key(p.seed), p.x)
    same(ours.apply(variables, p.x), theirs.apply(variables, p.x), narrowest(p))
    same(jax.jit(ours.apply)(variables, p.x), theirs.apply(variables, p.x), narrowest(p))
    gradient = lambda m, v, x: jax.grad(lambda v: m.apply(v, x).astype("float32").sum())(v)["params"]
    found, expected = (gradient(m, variables, p.x) for m in (ours, theirs))
    wide = gradient(theirs, jax.tree.map(lambda a: a.astype("float32"), variables), p.x.astype("float32"))
    for name in expected:
        same(found[name], expected[name], narrowest(p), wide[name])
    assert jax.tree.map(jnp.shape, ours.init(jax.random.key(0), p.x)["params"]) == jax.tree.map(jnp.shape, variables["params"])


@pytest.mark.parametrize("p", [problem(seed, transposed=True) for seed in range(200, 204)], ids=str)
def test_random_transposed_layers_are_those_of_nnx_conv_transpose(p):
    make = dict(p.flax, padding="SAME", transpose_kernel=True, rngs=nnx.Rngs(p.seed))
    theirs = nnx.ConvTranspose(p.channels, p.filters, p.window, **make)
    ours = gconv.nnx.GroupedConvTranspose(p.channels, p.window, p.filters, 1, **p.options, padding="same", rngs=nnx.Rngs(0))
    nnx.update(ours, nnx.state(theirs, nnx.Param))
    x = p.array(0, (2, *p.spatial, p.channels), p.dtype)
    same(ours(x), theirs(x), narrowest(p))
    ct = p.array(9, theirs(x).shape)
    found, expected = (nnx.grad(loss)(m, x, ct) for m in (ours, theirs))
    wide = nnx.grad(loss)(in_float32(theirs), x.astype("float32"), ct)
    for name in found:
        same(found[name][...], expected[name][...], narrowest(p), wide[name][...])


# --- input_dilation of the function, against loops -----------------------------------------------------------------------

DILATED = [
    # spatial, window, factors, strides, padding, dilation, groups
    ((5,), (3,), (2,), (1,), ((1, 2),), (1,), 2),
    ((4, 3), (3, 2), (3, 1), (1, 1), ((0, 4), (2, 0)), (1, 2), 3),
    ((4, 3), (3, 2), (2, 3), (2, 1), ((2, 1), (3, 3)), (1, 1), 1),
    ((3, 4), (2, 2), (2, 2), (3, 2), ((0, 0), (5, 0)), (2, 1), 2),
    ((1, 6), (1, 3), (4, 2), (1, 1), ((0, 7), (6, 1)), (1, 3), 2),  # more padding than the window
    ((2, 3, 2), (2, 1, 2), (2, 2, 3), (1, 1, 1), ((1, 0), (0, 1), (2, 2)), (1, 1, 1), 2),
]


@pytest.mark.parametrize("spatial, window, factors, strides, pads, dilation, groups", DILATED)
def test_a_dilated_input_is_that_of_the_loops(implementation, needs, spatial, window, factors, strides, pads, dilation, groups):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *spatial, groups * 2)).astype("float32")
    kernel = rng.normal(size=(*window, 2, groups * 3)).astype("float32")
    spread = np.zeros((2, *((n - 1) * f + 1 for n, f in zip(spatial, factors, strict=True)), groups * 2), "float32")
    spread[(slice(None), *(slice(None, None, f) for f in factors))] = x
    facts = dict(groups=groups, strides=strides, pads=pads, dilation=dilation)
    options = dict(strides=strides, padding=pads, dilation=dilation)
    needs(geometry(spread.shape, kernel.shape, groups=groups, **options)[1])
    conv = partial(gconv.grouped_conv, groups=groups, **options, input_dilation=factors, implementation=implementation)
    y, pull = jax.vjp(conv, x, kernel)
    np.testing.assert_allclose(y, oracle.conv(spread, kernel, **facts), rtol=1e-5, atol=1e-5)
    ct = rng.normal(size=y.shape).astype("float32")
    dx, dk = pull(ct)
    expected = oracle.input_gradient(ct, kernel, spread.shape, **facts)[(slice(None), *(slice(None, None, f) for f in factors))]
    np.testing.assert_allclose(dx, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dk, oracle.kernel_gradient(spread, ct, kernel.shape, **facts), rtol=1e-5, atol=1e-5)
    if implementation == "xla":  # the roles' derivatives are tested elsewhere
        check_grads(lambda x: conv(x, kernel), (x,), order=2, modes=("fwd", "rev"), eps=1.0)
        check_grads(lambda kernel: conv(x, kernel), (kernel,), order=2, modes=("fwd", "rev"), eps=1.0)
    over = jax.vmap(lambda k: conv(x, k))(np.stack([kernel, 2 * kernel]))
    np.testing.assert_allclose(over[1], 2 * y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("padding", ["same", "same_lower", "valid", "causal", 1, [2, 0]])
@pytest.mark.parametrize("fill", [0, -1.5])
def test_padding_is_that_of_the_dilated_input(strides, padding, fill):
    x, kernel = np.random.default_rng(1).normal(size=(2, 7, 3)).astype("float32"), np.ones((4, 1, 6), "float32")
    spread = np.zeros((2, 19, 3), "float32")
    spread[:, ::3] = x
    options = dict(strides=strides, padding=padding, padding_value=fill)
    found = gconv.grouped_conv(x, kernel, **options, input_dilation=3)
    np.testing.assert_allclose(found, gconv.grouped_conv(spread, kernel, **options), rtol=1e-6, atol=1e-6)
    if padding == "same":
        assert found.shape == (2, -(-19 // strides), 6)


def test_a_dilation_without_strides_multiplies_by_no_zeros():
    x, kernel = jax.ShapeDtypeStruct((1, 8, 8, 4), "float32"), jax.ShapeDtypeStruct((3, 3, 1, 4), "float32")
    program = lambda strides: str(jax.make_jaxpr(partial(gconv.grouped_conv, strides=strides, input_dilation=2))(x, kernel))
    assert "grouped_conv_x" in program(1) and "pad[" not in program(1)
    assert "grouped_conv_y" in program(2) and "pad[" in program(2)


def test_symbolic_sizes_and_explicit_meshes():
    batch, n = jax.export.symbolic_shape("b, n")
    x = jax.ShapeDtypeStruct((batch, n, 4), "float32")
    conv = lambda x: gconv.grouped_conv(x, jnp.ones((3, 1, 4)), padding=1, input_dilation=2)
    data = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("float32")
    np.testing.assert_allclose(jax.export.export(jax.jit(conv))(x).call(data), conv(data), rtol=1e-6, atol=1e-6)
    mesh = jax.make_mesh((2, 2), ("data", "groups"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        placed = jax.device_put(data, jax.P("data", None, "groups"))
        y = conv(placed)
        assert jax.typeof(y).sharding.spec == jax.P("data", None, "groups")
    np.testing.assert_allclose(y, conv(data), rtol=1e-6, atol=1e-6)


def test_what_a_dilated_input_cannot_be():
    x = jnp.ones((1, 3, 3, 2))
    with pytest.raises(ValueError, match=r"size 5 \(dilated by 2\).*an input of at least 5") as raised:
        gconv.grouped_conv(x, jnp.ones((9, 9, 1, 2)), input_dilation=2)
    assert "at least 4 more padding" in str(raised.value)
    assert gconv.grouped_conv(jnp.ones((1, 5, 5, 2)), jnp.ones((9, 9, 1, 2)), input_dilation=2).shape == (1, 1, 1, 2)
    with pytest.raises(ValueError, match="`padding_value`='replicate' repeats samples.*mode='edge'.*works: 0"):
        gconv.grouped_conv(x, jnp.ones((3, 3, 1, 2)), padding=1, padding_value="replicate", input_dilation=2)
    with pytest.raises(ValueError, match="`padding_value`='circular' repeats samples"):
        gconv.nnx.GroupedConv(2, 3, 1, 2, padding_value="circular", input_dilation=(1, 2), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="`input_dilation` must be at least 1, got 0"):
        gconv.linen.GroupedConv(3, 1, 2, input_dilation=0)


# --- mask ----------------------------------------------------------------------------------------------------------------


def test_a_mask_is_state_and_no_parameter():
    mask = np.tril(np.ones((3, 3, 2, 4)))
    layer = gconv.nnx.GroupedConv(4, 3, 2, 2, mask=mask, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 5, 4)), "float32")
    expected = gconv.grouped_conv(x, layer.kernel[...] * mask.astype("float32"), layer.bias[...], groups=2)
    np.testing.assert_array_equal(layer(x), expected)
    for again in (nnx.merge(*nnx.split(layer)), nnx.clone(layer)):
        np.testing.assert_array_equal(again(x), expected)
    assert [*gconv.optim.factors(layer).learn_rate] == ["bias", "kernel"]
    optimizer = nnx.Optimizer(layer, gconv.optim.sgdm(0.1), wrt=nnx.Param)
    before = np.asarray(layer.kernel[...])
    optimizer.update(layer, nnx.grad(lambda m: m(x).sum())(layer))
    moved = np.asarray(layer.kernel[...]) != before
    l2 = before * 1e-4 * 0.1
    np.testing.assert_allclose(np.asarray(layer.kernel[...])[mask == 0], (before - l2)[mask == 0], rtol=1e-6)
    assert moved[mask == 1].all()
    np.testing.assert_array_equal(layer.mask, mask)


def test_a_mask_may_come_later_and_go():
    layer, x = gconv.nnx.GroupedConv(4, 3, 2, 2, rngs=nnx.Rngs(0)), jnp.ones((1, 5, 5, 4))
    plain = layer(x)
    layer.mask = jnp.zeros((3, 3, 2, 4))
    assert not np.asarray(layer(x)).any()
    assert not np.asarray(nnx.jit(lambda m, x: m(x))(layer, x)).any()
    layer.mask = None
    np.testing.assert_array_equal(layer(x), plain)
    layer.mask = jnp.ones((3, 3, 2, 5))
    with pytest.raises(ValueError, match=r"`mask` must have the kernel's shape, \(3, 3, 2, 4\), got \(3, 3, 2, 5\).*jnp.ones"):
        layer(x)


def test_stacks_of_layers_with_masks_and_their_shardings():
    make = nnx.vmap(
        lambda key: gconv.nnx.GroupedConv(4, 3, 2, 2, padding=1, mask=jnp.tril(jnp.ones((3, 3, 2, 4))), rngs=nnx.Rngs(key))
    )
    layers, x = make(jax.random.split(jax.random.key(0), 3)), jnp.ones((1, 5, 5, 4))
    assert layers.mask.shape == (3, 3, 3, 2, 4)
    _, outputs = nnx.scan(lambda x, layer: (layer(x), layer(x)), in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))(x, layers)
    assert outputs.shape == (3, 1, 5, 5, 4)
    mesh = jax.make_mesh((1, 2), ("data", "groups"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    single = gconv.nnx.GroupedConv(4, 3, 2, 2, mask=jnp.ones((3, 3, 2, 4)), rngs=nnx.Rngs(0))
    for layer, front in ((layers, (None,)), (single, ())):
        places = gconv.nnx.shardings(layer, mesh)
        nnx.update(layer, jax.device_put(nnx.state(layer), places))
        assert layer.mask.sharding.spec == layer.kernel[...].sharding.spec == jax.P(*front, None, None, None, "groups")


WRONG = [(3, "must be an array or None, got int"), (np.ones((3, 3, 4, 4)), "kernel's shape")]


@pytest.mark.parametrize("wrong, message", WRONG)
def test_a_wrong_mask_says_so(wrong, message):
    with pytest.raises((TypeError, ValueError), match=message):
        gconv.nnx.GroupedConv(4, 3, 2, 2, mask=wrong, rngs=nnx.Rngs(0))
    with pytest.raises((TypeError, ValueError), match=message):
        gconv.linen.GroupedConv(3, 2, 2, mask=wrong).init(jax.random.key(0), jnp.ones((1, 5, 5, 4)))


# --- preferred_element_type ----------------------------------------------------------------------------------------------


def test_a_preferred_type_must_hold_the_sums():
    assert gconv.nnx.GroupedConv(2, 3, 1, 2, dtype="bfloat16", preferred_element_type="float32", rngs=nnx.Rngs(0))(
        jnp.ones((1, 4, 4, 2))
    ).dtype == jnp.dtype("float32")
    with pytest.raises(TypeError, match="`preferred_element_type`=bfloat16 cannot hold.*float32 operands.*works: 'float32'"):
        gconv.nnx.GroupedConv(2, 3, 1, 2, dtype="float32", preferred_element_type="bfloat16", rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="`preferred_element_type`=bfloat16 cannot hold"):
        gconv.grouped_conv(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 1, 2)), preferred_element_type="bfloat16")
    with pytest.raises(TypeError, match="`preferred_element_type` must be a floating.*'fp32'. Did you mean \"float32\""):
        gconv.linen.GroupedConv(3, 1, 2, preferred_element_type="fp32")


# --- to and from Flax ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [problem(seed) for seed in range(300, 303)], ids=str)
def test_they_travel_to_flax_and_back(p):
    theirs = nnx.Conv(*p.features, p.window, **p.flax, rngs=nnx.Rngs(p.seed))
    found = gconv.interop.from_flax(theirs)
    same(found(p.x), theirs(p.x), narrowest(p))
    same(found.to_nnx()(p.x), theirs(p.x), narrowest(p))
    module, variables = found.to_linen()
    same(module.apply(variables, p.x), theirs(p.x), narrowest(p))
    again = gconv.interop.to_flax(found.to_nnx())
    same(again(p.x), theirs(p.x), narrowest(p))
    if p.options["preferred_element_type"] is None:
        module, variables = gconv.interop.to_flax(found, linen=True)
        same(module.apply(variables, p.x), theirs(p.x), narrowest(p))


@pytest.mark.parametrize("transpose_kernel", [True, False])
@pytest.mark.parametrize("padding", ["SAME", ((4, 3), (2, 2)), 7])  # two that pad more than a window: no transposed ones here
def test_masks_of_transposed_layers_travel(transpose_kernel, padding):
    strides = 1 if padding == 7 else 2
    shape = (3, 3, 4, 2) if transpose_kernel else (3, 3, 2, 4)
    mask = np.random.default_rng(0).random(shape) > 0.5
    options = dict(strides=strides, padding=padding, transpose_kernel=transpose_kernel, mask=mask)
    theirs, x = nnx.ConvTranspose(2, 4, (3, 3), **options, rngs=nnx.Rngs(0)), jnp.ones((1, 5, 5, 2))
    found = gconv.interop.from_flax(theirs)
    assert found.mask.dtype == bool and 0 < found.mask.sum() < mask.size
    same(found(x), theirs(x), "float32")
    assert found.config.transposed == (padding == "SAME")
    assert found.config.input_dilation == (() if padding == "SAME" else (strides,) * 2)
    same(gconv.interop.to_flax(found)(x), theirs(x), "float32")


def test_other_libraries_say_that_they_have_neither():
    masked = gconv.nnx.GroupedConv(4, 3, 2, 2, mask=jnp.tril(jnp.ones((3, 3, 2, 4))), rngs=nnx.Rngs(0))
    dilated = gconv.nnx.GroupedConv(4, 3, 2, 2, input_dilation=2, rngs=nnx.Rngs(0))
    x = jnp.ones((1, 5, 5, 4))
    for convert in (gconv.interop.to_matlab, gconv.interop.to_onnx):
        with pytest.raises(ValueError, match=r"no `mask`.*layer.mask = None"):
            convert(masked)
        with pytest.raises(ValueError, match=r"no `input_dilation`.*\(2, 2\).*GroupedConvTranspose"):
            convert(dilated)
    expected = masked(x)
    masked.kernel[...] = masked.kernel[...] * masked.mask
    masked.mask = None
    np.testing.assert_array_equal(masked(x), expected)
    assert gconv.interop.to_matlab(masked)["Weights"].shape == (3, 3, 2, 2, 2)
