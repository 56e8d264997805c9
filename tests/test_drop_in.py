"""`conv_general_dilated` against `jax.lax.conv_general_dilated`: values, gradients, vmap, errors, meshes, models.

The arrays hold small integers, so that every sum is exact in float32 whatever its order.
"""

import inspect
import itertools
import random
import re
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import draw
from flax import linen, nnx
from jax import lax
from jax.sharding import AxisType, PartitionSpec
from jax.test_util import check_grads

import gconv
from gconv import backends
from gconv.acceleration.drop_in import conv_general_dilated

LAX = lax.conv_general_dilated
NHWC = ("NHWC", "HWIO", "NHWC")


class Call:
    """One call: shapes in the order (batch, channels, *spatial) and (filters, channels, *window), and lax's options."""

    def __init__(self, lhs, rhs, layout=None, **options):
        self.lhs, self.rhs, self.layout = lhs, rhs, layout
        rank = len(lhs) - 2
        self.options = {"window_strides": (1,) * rank, "padding": ((0, 0),) * rank, "dimension_numbers": layout, **options}

    def __repr__(self) -> str:
        values = (v if isinstance(v, str) else str(v).replace(" ", "") for v in self.options.values())
        return f"{self.lhs}-{self.rhs}-".replace(" ", "") + "-".join(values)

    def arrays(self, dtype="float32") -> tuple:
        """`(lhs, rhs)` in the layout of the call."""
        rng = np.random.default_rng(0)
        made = []
        for shape, letters, spec in zip((self.lhs, self.rhs), ("NC", "OI"), self.layout or ("", ""), strict=False):
            spec = spec or letters + "DHWX"[: len(shape) - 2]
            order = letters + "".join(c for c in (self.layout[1] if self.layout else spec) if c not in "OINC")
            sizes = dict(zip(order, shape, strict=True))
            made.append(integers(rng, [sizes[c] for c in spec], dtype))
        return tuple(made)

    def is_legal(self) -> bool:
        try:
            jax.eval_shape(lambda *a: LAX(*a, **self.options), *self.arrays())
        except (ValueError, TypeError):
            return False
        return True


def integers(rng, shape, dtype) -> np.ndarray:
    """Integers from -3 to 3, also in a floating or complex dtype."""
    dtype = jnp.dtype(dtype)
    whole = rng.integers(0 if dtype.kind == "u" else -3, 4, (2, *shape))
    return (whole[0] + 1j * whole[1] if dtype.kind == "c" else whole[0]).astype(dtype)


def assert_same(call, dtype="float32", axes=None, **options) -> None:
    """Values, dtypes and both gradients, also under vmap over `axes`, are those of lax."""
    operands = call.arrays(dtype)
    if axes:
        operands = tuple(a if d is None else np.stack([a, -a, a + 1], d) for a, d in zip(operands, axes, strict=True))

    def run(function, lhs, rhs):
        def apply(*a):
            y = function(*a, **call.options, **options)
            # Differs everywhere, and keeps to integers.
            weight = (jnp.arange(y.size).reshape(y.shape) % 5 - 2).astype(y.dtype)
            return y, jnp.sum(y * weight).real

        def one(*a):
            if not jnp.issubdtype(a[0].dtype, jnp.inexact):
                return apply(*a)[0], ()
            gradients, y = jax.grad(lambda *a: apply(*a)[::-1], (0, 1), has_aux=True)(*a)
            return y, gradients

        return (jax.vmap(one, axes) if axes else one)(lhs, rhs)

    expected, got = jax.jit(lambda *a: (run(LAX, *a), run(conv_general_dilated, *a)))(*operands)
    # Half precision rounds where its sums leave the integers that it has, which depends on their order.
    narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    tolerance = 2e-2 if narrow else 1e-6
    for e, g in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        assert (g.shape, g.dtype) == (e.shape, e.dtype)
        e, g = (np.asarray(a, np.complex128 if jnp.iscomplexobj(a) else np.float64) for a in (e, g))
        scale = np.abs(e).max(initial=1)
        np.testing.assert_allclose(g, e, rtol=tolerance, atol=tolerance * scale)


def scopes(function, *operands) -> set[str]:
    """Which roles a program runs, read off its lowered text."""
    text = jax.jit(function).lower(*operands).as_text(debug_info=True)
    return {role for role in "yxw" if f"gconv_{role}_" in text}


# --- the calls -------------------------------------------------------------------------------------------------------


def by_jax() -> list[Call]:
    """The options that JAX's own tests of the general convolution go through, sampled."""
    batch, channels, filters = 6, 2, 3
    layouts = (("NCHW", "OIHW", "NCHW"), NHWC, ("NCHW", "HWIO", "NHWC"), ("HWNC", "OHWI", "CNWH"))
    product = itertools.product(
        ((1, 1), (3, 1), (1, 2)),  # feature groups, batch groups
        ((7, 8), (6, 5)),
        ((4, 3), (2, 3)),
        ((1, 1), (1, 2), (2, 1)),
        (((0, 0), (0, 0)), ((1, 2), (2, 0)), ((-1, 2), (3, -1)), ((5, 8), (7, 4)), "SAME", "VALID", "SAME_LOWER"),
        ((1, 1), (1, 2), (3, 2)),
        ((1, 1), (1, 2), (2, 1)),
        layouts,
    )
    calls = []
    for (f, b), spatial, window, strides, padding, lhs_dilation, rhs_dilation, layout in product:
        call = Call(
            (batch, channels * f, *spatial),
            (filters * f * b, channels, *window),
            layout,
            window_strides=strides,
            padding=padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            feature_group_count=f,
            batch_group_count=b,
        )
        calls.append(call)
    random.Random(0).shuffle(calls)
    return list(itertools.islice((c for c in calls if c.is_legal()), 20))


def sampled(n: int) -> list[Call]:
    """`n` legal calls with 0 to 4 spatial axes, any layouts, cropping and dilation, the same ones every time."""
    rng, found = random.Random(1), []
    while len(found) < n:
        rank = rng.choice((0, 1, 1, 2, 2, 2, 3, 3, 4))
        axes = lambda *choices, rank=rank: tuple(rng.choice(choices) for _ in range(rank))
        groups, channels, filters = rng.choice(((1, 2, 3), (2, 2, 3), (3, 1, 2), (4, 1, 1), (2, 3, 1), (6, 1, 1)))
        spatial = "DHWX"[:rank]
        layout = tuple("".join(rng.sample(c + spatial, rank + 2)) for c in ("NC", "OI", "NC"))
        transposed = rng.random() < 0.4
        pads = tuple((rng.randrange(-2, 5), rng.randrange(-2, 5)) for _ in range(rank))
        options = {
            "window_strides": axes(1) if transposed and rng.random() < 0.8 else axes(1, 1, 2, 3),
            "padding": pads if transposed or rng.random() < 0.6 else rng.choice(("SAME", "SAME_LOWER", "VALID")),
            "lhs_dilation": axes(1, 2, 2, 3) if transposed else rng.choice((None, axes(1))),
            "rhs_dilation": rng.choice((None, axes(1, 2))),
            "feature_group_count": groups,
        }
        lhs = (rng.choice((1, 2)), groups * channels, *axes(*range(1, 3 if rank == 4 else 8 - rank)))
        call = Call(lhs, (groups * filters, channels, *axes(1, 2, 3)), rng.choice((layout, layout, None)), **options)
        if call.is_legal():
            found.append(call)
    return found


VMAPS = (None, (0, None), (None, 1), (1, 0))
SAMPLED = [(call, VMAPS[i % 4]) for i, call in enumerate(by_jax() + sampled(44))]


@pytest.mark.parametrize(("call", "axes"), SAMPLED, ids=map(str, SAMPLED))
def test_values_gradients_and_vmap_are_those_of_lax(call, axes):
    assert_same(call, axes=axes)


GROUPED = Call((2, 6, 7), (9, 2, 3), feature_group_count=3, padding=((2, -1),), window_strides=(2,))
DEPTHWISE = Call((2, 3, 5, 6), (6, 1, 3, 2), NHWC, feature_group_count=3, padding="SAME", rhs_dilation=(1, 2))
TRANSPOSED = Call((2, 4, 5), (6, 2, 3), feature_group_count=2, lhs_dilation=(3,), padding=((1, 3),))
DTYPES = ("float16", "bfloat16", "float64", "complex64", "complex128", "int8", "int32", "int64", "uint8")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("call", (GROUPED, TRANSPOSED), ids=("grouped", "transposed"))
def test_dtypes(call, dtype, x64):
    assert_same(call, dtype)


PREFERRED = (
    ("bfloat16", "float32"),
    ("float32", "float64"),
    ("int8", "int32"),
    ("uint8", "uint32"),
)


@pytest.mark.parametrize(("dtype", "preferred"), PREFERRED)
@pytest.mark.parametrize("call", (GROUPED, TRANSPOSED), ids=("grouped", "transposed"))
def test_preferred_element_type(call, dtype, preferred, x64):
    assert_same(call, dtype, preferred_element_type=preferred)


@pytest.mark.parametrize("call", (GROUPED, TRANSPOSED), ids=("grouped", "transposed"))
@pytest.mark.parametrize("argument", (0, 1))
def test_differentiable_twice_in_both_modes(call, argument, x64):
    operands = list(call.arrays("float64"))

    def of_one(a):
        return jnp.sin(conv_general_dilated(*operands[:argument], a, *operands[argument + 1 :], **call.options))

    check_grads(of_one, (operands[argument],), order=2, modes=("fwd", "rev"))


def test_numbers_may_come_as_lists_and_numpy():
    lhs, rhs = draw(np.random.default_rng(0), (2, 8, 9, 6), "float32"), draw(np.random.default_rng(1), (3, 3, 2, 6), "float32")
    specs = lax.conv_dimension_numbers(lhs.shape, rhs.shape, NHWC)
    for options in (
        ([1, 2], [[1, 1], [0, 2]], np.array([2, 1]), [1, 2], list(NHWC), np.int32(3)),
        (np.array([2, 1]), "same", None, np.array([2, 1]), specs, 3),
        ((2, 1), np.array([[1, -1], [0, 2]]), [1, 1], None, NHWC, 3),
    ):
        expected = outcome(LAX, lhs, rhs, *options)
        np.testing.assert_allclose(outcome(conv_general_dilated, lhs, rhs, *options), expected, rtol=1e-5, atol=1e-5)


# --- which path ------------------------------------------------------------------------------------------------------

TAKEN = {
    "grouped": (GROUPED, {"y"}),
    "depthwise": (DEPTHWISE, {"y"}),
    "depthwise-3d": (Call((1, 2, 3, 4, 3), (2, 1, 2, 2, 2), feature_group_count=2), {"y"}),
    "odd-layout": (Call((2, 4, 5, 6), (4, 2, 2, 2), ("HCNW", "OWHI", "CWNH"), feature_group_count=2), {"y"}),
    "crops": (Call((2, 4, 6), (4, 2, 2), feature_group_count=2, padding=((-1, -2),)), {"y"}),
    "transposed": (TRANSPOSED, {"x"}),
    "transposed-dense": (Call((2, 3, 5, 4), (4, 3, 2, 2), lhs_dilation=(2, 1), padding=((1, 1), (1, 1))), {"x"}),
    "dense": (Call((2, 3, 5), (4, 3, 2)), {"y"}),
    "dense-dilations-of-1": (Call((2, 3, 5), (4, 3, 2), lhs_dilation=(1,), rhs_dilation=(2,)), {"y"}),
    "batch-groups": (Call((4, 3, 5), (4, 3, 2), batch_group_count=2), {"y"}),
    "kernel-gradient": (Call((3, 2, 9, 9), (4, 2, 7, 7)), {"w"}),
    "kernel-gradient-of-groups": (Call((6, 2, 9, 9), (4, 2, 7, 7), batch_group_count=2), {"w"}),
    "kernel-gradient-of-transposed": (Call((3, 2, 5, 5), (4, 2, 8, 8), lhs_dilation=(2, 2), window_strides=(2, 1)), {"w"}),
    "both-strides": (Call((2, 4, 5), (4, 2, 2), feature_group_count=2, lhs_dilation=(2,), window_strides=(2,)), set()),
    "0-d": (Call((2, 4), (4, 2), feature_group_count=2), set()),
    "4-d": (Call((2, 4, 2, 2, 2, 2), (4, 2, 1, 1, 1, 1), feature_group_count=2), set()),
    "empty-batch": (Call((0, 4, 5), (4, 2, 2), feature_group_count=2), set()),
    "empty-output": (Call((1, 4, 1), (4, 2, 2), feature_group_count=2), set()),
    "empty-channels": (Call((1, 0, 4), (4, 0, 2), feature_group_count=2), set()),
}


@pytest.mark.parametrize("name", TAKEN)
def test_takes_over_what_it_should(name):
    call, roles = TAKEN[name]
    operands = call.arrays()
    assert scopes(lambda *a: conv_general_dilated(*a, **call.options), *operands) == roles
    np.testing.assert_allclose(conv_general_dilated(*operands, **call.options), LAX(*operands, **call.options), rtol=1e-6)


@pytest.mark.parametrize("call", (GROUPED, TRANSPOSED), ids=("grouped", "transposed"))
def test_gradients_take_the_fast_path_too(call):
    gradient = jax.grad(lambda *a: conv_general_dilated(*a, **call.options).sum(), (0, 1))
    # The sum's gradient does not need the values; an input gradient is the other one of y and x.
    assert {"w"} < scopes(gradient, *call.arrays())


@pytest.mark.parametrize(("window", "groups"), ((1, 1), (3, 1), (3, 4), (3, 16)))
def test_gradients_without_strides_move_no_array(window, groups):
    """lax's own rules turn the kernel and its gradient, the role turns them back, and XLA sees that."""
    if reason := gconv.implementations("cpu")["native"]:
        pytest.skip(reason)
    convolve = partial(
        conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        implementation="native",
    )
    x, kernel = jnp.ones((2, 7, 7, 16)), jnp.ones((window, window, 16 // groups, 16))
    program = jax.jit(lambda x, kernel, y: jax.vjp(convolve, x, kernel)[1](y)).lower(x, kernel, x).compile().as_text()
    assert {"gconv_x_native", "gconv_w_native"} <= {*re.findall(r"gconv_[yxw]_native", program)}
    assert not re.findall(r" (?:transpose|reverse|copy)\(", program)


@pytest.mark.parametrize("call", (GROUPED, DEPTHWISE, TRANSPOSED), ids=("grouped", "depthwise", "transposed"))
def test_named_implementation_runs(call, implementation):
    try:
        got = conv_general_dilated(*call.arrays(), **call.options, implementation=implementation)
    except ValueError as error:
        assert f"implementation={implementation!r} cannot run" in str(error)
        pytest.skip(str(error))
    np.testing.assert_allclose(got, LAX(*call.arrays(), **call.options), rtol=1e-6)


@pytest.mark.parametrize("name", [name for name, (_, roles) in TAKEN.items() if not roles])
def test_named_implementation_never_falls_back(name):
    call, _ = TAKEN[name]
    for implementation in backends.TABLE:
        with pytest.raises(ValueError, match="cannot run this convolution: .*implementation=None"):
            conv_general_dilated(*call.arrays(), **call.options, implementation=implementation)


def test_unknown_implementation():
    with pytest.raises(ValueError, match="`implementation` must be None or one of .*'fast'"):
        conv_general_dilated(*GROUPED.arrays(), **GROUPED.options, implementation="fast")


def test_the_jaxpr_is_that_of_lax():
    program = lambda function: jax.make_jaxpr(jax.grad(lambda *a: (function(*a, **GROUPED.options) ** 2).sum(), (0, 1)))
    with jax.default_matmul_precision("high"):
        assert str(program(conv_general_dilated)(*GROUPED.arrays())) == str(program(LAX)(*GROUPED.arrays()))


def test_symbolic_sizes():
    rhs = np.ones((2, 3, 6), np.float32)
    options = {"dimension_numbers": ("NWC", "IWO", "NWC"), "feature_group_count": 2}
    run = jax.jit(lambda lhs: conv_general_dilated(lhs, rhs, (1,), "SAME", **options))
    (n,) = jax.export.symbolic_shape("n")
    for shape, roles in (((n, 8, 4), {"y"}), ((2, n, 4), set())):
        operand = jax.ShapeDtypeStruct(shape, jnp.float32)
        assert scopes(run, operand) == roles
        lhs = np.ones((2, 8, 4), np.float32)
        np.testing.assert_allclose(jax.export.export(run)(operand).call(lhs), run(lhs))


# --- errors ----------------------------------------------------------------------------------------------------------


def outcome(function, *arguments, **options):
    """The result, or the type of the error and what it says, but for where in the source."""
    try:
        return np.asarray(function(*arguments, **options))
    except Exception as error:
        return type(error), str(error).partition("at loc")[0]


WRONG = {
    "ranks differ": {"rhs": np.ones((2, 2, 3), np.float32)},
    "dtypes differ": {"rhs": np.ones((4, 2, 3, 3), np.float16)},
    "channels do not divide": {"feature_group_count": 3},
    "no groups": {"feature_group_count": 0},
    "kernel channels": {"rhs": np.ones((4, 3, 3, 3), np.float32)},
    "filters do not divide": {"rhs": np.ones((3, 2, 3, 3), np.float32)},
    "both kinds of groups": {"batch_group_count": 2},
    "too few strides": {"window_strides": (1,)},
    "a stride of zero": {"window_strides": (0, 1)},
    "a stride of a half": {"window_strides": (0.5, 1)},
    "padding name": {"padding": "SOME"},
    "padding fraction": {"padding": ((0.5, 1), (1, 1))},
    "too few pads": {"padding": ((1, 1),)},
    "pads are no pairs": {"padding": (1, 1)},
    "crops too much": {"padding": ((-5, -5), (0, 0))},
    "names transposed": {"lhs_dilation": (2, 1), "padding": "SAME"},
    "a dilation of zero": {"rhs_dilation": (0, 1)},
    "one dilation for all": {"lhs_dilation": 2},
    "too many lhs dilations": {"lhs_dilation": (2, 2, 2)},
    "too many rhs dilations": {"rhs_dilation": (2, 2, 2)},
    "layout of two": {"dimension_numbers": ("NCHW", "OIHW")},
    "layout twice": {"dimension_numbers": ("NCHH", "OIHW", "NCHW")},
    "layout of numbers": {"dimension_numbers": (1, 2, 3)},
    "precision": {"precision": "perfect"},
    "preferred is narrower": {"preferred_element_type": "float16"},
    "preferred is of another kind": {"preferred_element_type": "int32"},
    "sharding without a mesh": {"out_sharding": PartitionSpec("data")},
}


@pytest.mark.filterwarnings("ignore:divide by zero")  # lax's own, at strides of zero
@pytest.mark.parametrize("name", WRONG)
def test_errors_are_those_of_lax(name):
    arguments = {"lhs": np.ones((2, 4, 5, 5), np.float32), "rhs": np.ones((4, 2, 3, 3), np.float32), "window_strides": (1, 1)}
    arguments |= {"padding": ((1, 1), (1, 1)), "feature_group_count": 2, **WRONG[name]}
    expected = outcome(LAX, **arguments)
    assert isinstance(expected, tuple)
    assert outcome(conv_general_dilated, **arguments) == expected


def test_signature_is_that_of_lax():
    def parameters(function):
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]

    *shared, last = parameters(conv_general_dilated)
    assert shared == parameters(LAX)
    assert last == ("implementation", inspect.Parameter.KEYWORD_ONLY, None)


# --- meshes ----------------------------------------------------------------------------------------------------------

ON_MESH = {"window_strides": (1, 1), "padding": ((1, 1), (1, 1)), "dimension_numbers": NHWC, "feature_group_count": 4}


def mesh_2x2(kind) -> jax.sharding.Mesh:
    return jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind, kind), devices=jax.devices()[:4])


def on_mesh(lhs_dilation=(1, 1)) -> tuple:
    rng = np.random.default_rng(0)
    options = ON_MESH | {"lhs_dilation": lhs_dilation}
    return integers(rng, (4, 6, 6, 8), "float32"), integers(rng, (3, 3, 2, 8), "float32"), options


def squares(function, **options):
    return lambda *a: (function(*a, **options) ** 2).sum()


@pytest.mark.parametrize("lhs_dilation", ((1, 1), (2, 2)))
@pytest.mark.parametrize("out", (None, PartitionSpec("data", None, None, "model")), ids=("by-rule", "given"))
def test_explicit_mesh(lhs_dilation, out):
    lhs, rhs, options = on_mesh(lhs_dilation)
    expected = LAX(lhs, rhs, **options)
    gradients = jax.grad(squares(LAX, **options), (0, 1))(lhs, rhs)
    with jax.set_mesh(mesh_2x2(AxisType.Explicit)):
        operands = jax.device_put(lhs, PartitionSpec("data")), jax.device_put(rhs, PartitionSpec())
        options["out_sharding"] = out
        typed = jax.typeof(LAX(*operands, **options))
        for run in (conv_general_dilated, jax.jit(conv_general_dilated, static_argnames=tuple(options))):
            got = run(*operands, **options)
            assert jax.typeof(got).sharding == typed.sharding
            np.testing.assert_allclose(got, expected)
        # lax's kernel gradient is twice too large here: the mesh has an axis that shards no operand.
        for g, e in zip(jax.jit(jax.grad(squares(conv_general_dilated, **options), (0, 1)))(*operands), gradients, strict=True):
            np.testing.assert_allclose(g, e, rtol=1e-5)


def test_explicit_mesh_asks_for_the_sharding_where_lax_does():
    lhs, rhs, options = on_mesh()
    with jax.set_mesh(mesh_2x2(AxisType.Explicit)):
        rhs = jax.device_put(rhs, PartitionSpec(None, None, None, "model"))
        expected = outcome(LAX, lhs, rhs, **options)
        assert "specify the output sharding" in expected[1]
        assert outcome(conv_general_dilated, lhs, rhs, **options) == expected


@pytest.mark.parametrize("specs", (("data", None), (None, "data")), ids=("lhs-varies", "rhs-varies"))
def test_shard_map(specs):
    lhs, rhs, options = on_mesh()
    specs = tuple(PartitionSpec(*(None,) * 3 * (i == 1), s) if s else PartitionSpec() for i, s in enumerate(specs))
    if specs[1] != PartitionSpec():  # each device has half of the groups, of its own slice of the input
        specs, options = (PartitionSpec(None, None, None, "data"), specs[1]), options | {"feature_group_count": 2}
    out = specs[0]
    run = lambda f: jax.shard_map(lambda *a: f(*a, **options), mesh=mesh_2x2(AxisType.Auto), in_specs=specs, out_specs=out)
    reference = lambda *a: (LAX(*a, **(options | {"feature_group_count": 4})) ** 2).sum()
    got = jax.jit(jax.value_and_grad(lambda *a: (run(conv_general_dilated)(*a) ** 2).sum(), (0, 1)))(lhs, rhs)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(jax.value_and_grad(reference, (0, 1))(lhs, rhs)), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-5)


# --- models of others ------------------------------------------------------------------------------------------------


def assert_models_agree(by_lax, swapped, *operands, role="y") -> None:
    """Two losses and their gradients are the same, and the second runs gconv."""
    assert scopes(by_lax, *operands) == set()
    assert role in scopes(swapped, *operands)
    expected, got = (jax.jit(jax.value_and_grad(f, tuple(range(len(operands)))))(*operands) for f in (by_lax, swapped))
    for e, g in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-4 * np.abs(e).max())


FLAX = (
    {"strides": 2, "padding": "SAME"},
    {"padding": "CIRCULAR", "kernel_dilation": 2},
    {"padding": ((1, 0), (2, 1)), "feature_group_count": 6},
    {"padding": ((1, 1), (0, 0)), "use_bias": False, "input_dilation": (2, 1)},
)
IMAGES = draw(np.random.default_rng(3), (2, 8, 8, 6), "float32")


@pytest.mark.parametrize("options", FLAX, ids=str)
def test_nnx_conv(options):
    options = {"feature_group_count": 3, **options}

    def loss(function):
        layer = nnx.Conv(6, 12, (3, 3), rngs=nnx.Rngs(0), conv_general_dilated=function, **options)
        graph, state = nnx.split(layer)
        return lambda state, x: (nnx.merge(graph, state)(x) ** 2).sum(), state

    (by_lax, state), (swapped, _) = loss(LAX), loss(conv_general_dilated)
    assert_models_agree(by_lax, swapped, state, IMAGES, role="x" if "input_dilation" in options else "y")


@pytest.mark.parametrize("options", FLAX[:3], ids=str)
def test_linen_conv(options):
    options = {"feature_group_count": 3, **options}
    layers = [linen.Conv(12, (3, 3), conv_general_dilated=f, **options) for f in (None, conv_general_dilated)]
    variables = layers[0].init(jax.random.key(0), IMAGES)
    assert_models_agree(*((lambda v, x, m=m: (m.apply(v, x) ** 2).sum()) for m in layers), variables, IMAGES)


@pytest.fixture
def with_gconv(monkeypatch):
    """`with_gconv(module, f)`: `f`, run with gconv in the place of lax's convolution in a module that says `lax.`..."""

    def swap(module, function):
        replaced = SimpleNamespace(**vars(lax) | {"conv_general_dilated": conv_general_dilated})

        def run(*operands):
            with monkeypatch.context() as patch:
                patch.setattr(module, "lax", replaced)
                return function(*operands)

        return run

    return swap


@pytest.mark.usefixtures("lenient")
def test_haiku_mobilenet(with_gconv):
    hk = pytest.importorskip("haiku", reason="dm-haiku is not installed: pip install dm-haiku")
    from haiku._src import depthwise_conv

    net = hk.without_apply_rng(hk.transform_with_state(lambda x: hk.nets.MobileNetV1((1, 2, 1), (8, 16, 16), 5)(x, True)))
    images = IMAGES[..., :3]
    shapes = jax.eval_shape(net.init, jax.random.key(0), images)
    rng = np.random.default_rng(0)
    parameters, state = jax.tree.map(lambda a: draw(rng, a.shape, a.dtype) if a.ndim else np.zeros((), a.dtype), shapes)
    loss = lambda parameters, images: (net.apply(parameters, state, images)[0] ** 2).sum()
    assert_models_agree(loss, with_gconv(depthwise_conv, loss), parameters, images)


@pytest.mark.parametrize("name", ("Conv1d", "Conv2d"))
def test_equinox_conv(name, with_gconv):
    eqx = pytest.importorskip("equinox", reason="equinox is not installed: pip install equinox")
    from equinox.nn import _conv

    layer = getattr(eqx.nn, name)(6, 12, 3, padding=1, stride=2, groups=3, key=jax.random.key(0))
    parameters, static = eqx.partition(layer, eqx.is_array)
    x = draw(np.random.default_rng(0), (2, 6, *(5,) * int(name[4])), "float32")
    loss = lambda parameters, x: (jax.vmap(eqx.combine(parameters, static))(x) ** 2).sum()
    assert_models_agree(loss, with_gconv(_conv, loss), parameters, x)


def test_equinox_conv_transpose(with_gconv):
    eqx = pytest.importorskip("equinox", reason="equinox is not installed: pip install equinox")
    from equinox.nn import _conv

    layer = eqx.nn.ConvTranspose2d(6, 9, 3, padding=1, stride=2, output_padding=1, groups=3, key=jax.random.key(0))
    x = draw(np.random.default_rng(0), (6, 4, 5), "float32")
    expected = layer(x)
    swapped = with_gconv(_conv, layer)
    assert scopes(swapped, x) == {"x"}
    np.testing.assert_allclose(swapped(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", (None, "lax", "xla"))
def test_lax_itself_may_be_replaced(implementation, monkeypatch):
    expected = LAX(*GROUPED.arrays(), **GROUPED.options)
    monkeypatch.setattr(lax, "conv_general_dilated", partial(conv_general_dilated, implementation=implementation))
    got = jax.jit(lambda *a: lax.conv_general_dilated(*a, **GROUPED.options))(*GROUPED.arrays())
    np.testing.assert_allclose(got, expected)
