"""Programs for GPUs and TPUs, lowered on a host that has neither: that they exist, what they ask for, what they lack.

Nothing here runs on such a device. What a program for CUDA computes is run on CPU where it is written in XLA's own operations.
"""

import re

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gconv
from gconv import backends, roles
from gconv.geometry import geometry

PLATFORMS = ("cuda", "tpu")
# Of gconv's own table, so that an implementation to come is among them.
AVAILABLE = [(p, name) for p in PLATFORMS for name, why_not in gconv.implementations(p).items() if why_not is None]
DTYPES = ("float32", "bfloat16", "float16", "int8")


def named(*names):
    return [case for case in cases.NAMED if case.name in names]


NAMES = ("causal-1d", "causal-dilated", "depthwise-2d", "grouped-2d", "matlab-flat", "wide-groups", "stride-over-window", "3d")
CASES = named(*NAMES)


def lowered(platform: str, function, *arguments, debug_info: bool = False) -> str:
    """The program in StableHLO."""
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text(debug_info=debug_info)


def shaped(case, dtype):
    return [jax.ShapeDtypeStruct(shape, dtype) for shape in (case.x_shape, case.kernel_shape, case.y_shape)]


def all_roles(case, **options):
    """`grouped_conv` and both of its gradients; of integers, which have none, the transposed convolution instead."""

    def run(x, kernel, ct):
        if jnp.issubdtype(x.dtype, jnp.integer):
            given = {k: v for k, v in case.options.items() if k in ("strides", "dilation")}
            return (
                gconv.grouped_conv(x, kernel, **case.options, **options),
                gconv.grouped_conv_transpose(ct, kernel, groups=case.groups, **given, **options),
            )
        y, pull = jax.vjp(lambda x, w: gconv.grouped_conv(x, w, **case.options, **options), x, kernel)
        return y, pull(ct.astype(y.dtype))

    return run


def facts_of(case):
    return geometry(case.x_shape, case.kernel_shape, **{k: v for k, v in case.options.items() if k != "padding_value"})[1]


# --- they lower ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("platform", "name"), AVAILABLE)
def test_every_role_lowers(platform, name, case):
    for dtype in DTYPES[CASES.index(case) % 2 :: 2]:
        wanted = "yx" if dtype == "int8" else "yxw"
        refused = [r for r in wanted if backends.TABLE[name].why_not(r, facts_of(case), jnp.dtype(dtype), platform)]
        run = all_roles(case, implementation=name)
        if refused:
            with pytest.raises(ValueError, match=f"implementation='{name}' cannot run role '{refused[0]}'.* {dtype}"):
                lowered(platform, run, *shaped(case, dtype))
            continue
        text = lowered(platform, run, *shaped(case, dtype), debug_info=True)
        assert {*re.findall(r"gconv_[yxw]_\w+", text)} == {f"gconv_{role}_{name}" for role in wanted}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_automatic_choice_lowers_and_is_the_one_explained(platform):
    for case, dtype in zip(CASES, DTYPES * 2, strict=True):
        x, kernel, ct = shaped(case, dtype)
        found = gconv.explain(x, kernel, **case.options, platform=platform)
        text = lowered(platform, all_roles(case), x, kernel, ct, debug_info=True)
        for role in "yx" if dtype == "int8" else "yxw":
            assert f"gconv_{role}_{found[role].implementation}" in text


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("kind", [gconv.nnx.GroupedConv, gconv.nnx.GroupedConvTranspose])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_training_step_lowers(platform, kind):
    model = kind(6, (3, 2), 4, 3, strides=2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    graph, state = nnx.split((model, optimizer))

    def step(state, x):
        model, optimizer = nnx.merge(graph, state)
        loss, gradient = nnx.value_and_grad(lambda model: (model(x) ** 2).mean())(model)
        optimizer.update(model, gradient)
        return loss, nnx.state((model, optimizer))

    text = lowered(platform, step, state, jax.ShapeDtypeStruct((4, 9, 8, 6), "float32"), debug_info=True)
    forward = "x" if kind is gconv.nnx.GroupedConvTranspose else "y"
    assert {role for role, _ in re.findall(r"gconv_([yxw])_(\w+)", text)} == {forward, "w"}


# --- precision and types ---------------------------------------------------------------------------------------------

PRODUCTS = re.compile(r"stablehlo\.(?:convolution|dot_general)\b.*?(?=\n)")


def precisions(text: str) -> set[str]:
    """What the convolutions and matrix products of a program ask for; one without an attribute asks for the default."""
    asked = [re.findall(r"precision(?:_config)? = \[?([^\]]*)\]", line) for line in PRODUCTS.findall(text)]
    return {word for found in asked for word in (re.findall(r"DEFAULT|HIGHEST|HIGH", found[0]) if found else ["DEFAULT"])}


@pytest.mark.parametrize("case", named("causal-dilated", "wide-groups", "stride-over-window"), ids=str)
@pytest.mark.parametrize(("platform", "name"), AVAILABLE)
def test_every_product_has_the_precision_asked_for(platform, name, case):
    """By argument, by JAX's setting when the program is traced, and the argument before the setting; backwards too."""

    def asked(precision, setting):
        with jax.default_matmul_precision(setting):
            traced = jax.jit(all_roles(case, implementation=name, precision=precision)).trace(*shaped(case, "float32"))
        return precisions(traced.lower(lowering_platforms=(platform,)).as_text())

    plain = asked(None, None)
    assert plain <= {"DEFAULT"}
    if name == "lax" or case.name == "wide-groups":
        assert plain, "a program with nothing to ask for says nothing about it"
    expected = lambda word: {word} if plain else set()
    assert asked("highest", None) == asked(None, "highest") == asked("highest", "bfloat16") == expected("HIGHEST")
    assert asked("high", None) == asked(None, "tensorfloat32") == expected("HIGH")


@pytest.mark.parametrize("case", named("causal-1d", "depthwise-2d", "wide-groups"), ids=str)
@pytest.mark.parametrize(("platform", "name"), AVAILABLE)
def test_no_other_type_than_asked_for(platform, name, case):
    """float32 stays float32; half precision is summed in float32, and `preferred_element_type` comes without rounding."""
    of = lambda text: {*re.findall(r"[x<](bf16|f16|f32|f64)>", text)}
    run = all_roles(case, implementation=name)
    assert of(lowered(platform, run, *shaped(case, "float32"))) == {"f32"}
    for dtype, short in (("bfloat16", "bf16"), ("float16", "f16")):
        text = lowered(platform, run, *shaped(case, dtype))
        assert of(text) == {short, "f32"}
        sums = [line for line in text.splitlines() if re.search(r"= stablehlo\.(multiply|add|convolution|dot_general)\b", line)]
        assert sums and all(re.search(r"f32>\s*(loc.*)?$", line) for line in sums), "products and sums in float32"
        forward = lambda x, w: gconv.grouped_conv(x, w, **case.options, implementation=name, preferred_element_type="float32")
        text = lowered(platform, forward, *shaped(case, dtype)[:2])
        assert not re.search(rf"stablehlo\.convert .*f32>\) -> tensor<[^>]*{short}>", text)


# --- lax, and what is faster -----------------------------------------------------------------------------------------


def convolutions(text: str) -> list[str]:
    """The convolutions of a program, without the names of their operands."""
    return [re.sub(r"%\w+", "%", found) for found in re.findall(r"stablehlo\.convolution.*?(?= loc\(|\n)", text)]


@pytest.mark.parametrize("case", [c for c in CASES if c.name != "causal-1d"], ids=str)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_by_lax_the_kernel_gradient_is_the_one_that_accelerators_know(platform, case):
    """To the letter that of lax's own, which on an H100 takes a tenth of the time of any other form; as is the convolution."""
    facts, (x, kernel, ct) = facts_of(case), shaped(case, "float32")
    s = ("", "W", "HW", "DHW")[facts.rank]
    conv = lambda x, w: jax.lax.conv_general_dilated(
        x, w, facts.strides, facts.padding, None, facts.dilation, (f"N{s}C", f"{s}IO", f"N{s}C"), facts.groups
    )
    zeros = jnp.zeros(kernel.shape)
    theirs = lambda x, ct: (conv(x, zeros), jax.linear_transpose(lambda w: conv(x, w), zeros)(ct)[0])
    ours = convolutions(lowered(platform, all_roles(case, implementation="lax"), x, kernel, ct))
    expected = convolutions(lowered(platform, theirs, x, ct))
    assert len(ours) == 3 and len(expected) == 2 and {*expected} <= {*ours}


def test_a_program_that_xla_may_split_has_no_groups_of_the_batch():
    """Which XLA splits wrongly (tests/test_sharding.py). Exported ones may be called by programs for several devices."""
    (case,) = named("wide-groups")
    counts = lambda text: {*re.findall(r"batch_group_count = (\d+)", text)}
    run, shapes = all_roles(case, implementation="lax"), shaped(case, "float32")
    assert counts(lowered("cuda", run, *shapes)) == {"1", "2"}
    for devices in (1, 2):
        mesh = jax.make_mesh((devices,), ("a",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
        for_devices = jax.jit(run, in_shardings=NamedSharding(mesh, PartitionSpec()))
        assert counts(jax.export.export(for_devices, platforms=["cuda"])(*shapes).mlir_module()) == {"1"}


@pytest.mark.parametrize(
    ("role", "geometry_", "chosen"),
    [
        ("y", dict(), "lax"),
        ("x", dict(), "lax"),
        ("w", dict(), "lax"),
        ("y", dict(strides=2), "xla"),
        ("x", dict(strides=2), "xla"),
        ("w", dict(strides=2), "lax"),
        ("y", dict(dilation=2), "xla"),
        ("x", dict(dilation=2), "xla"),
        ("w", dict(dilation=2), "xla"),
        ("y", dict(filters=2), "xla"),
        ("w", dict(filters=2), "xla"),
        ("y", dict(channels=4), "lax"),
        ("y", dict(channels=4, dilation=2), "lax"),
        ("y", dict(window=(8, 8), dilation=2), "lax"),
        ("y", dict(window=(4,)), "xla"),
        ("x", dict(window=(4,)), "xla"),
        ("w", dict(window=(4,)), "lax"),
        ("y", dict(window=(2, 2, 2)), "lax"),
        ("y", dict(window=(7, 7), dilation=2), "xla"),
        ("y", dict(window=(7, 7), strides=2), "lax"),
        ("y", dict(groups=1, filters=8, strides=2), "lax"),
    ],
)
def test_what_is_faster_on_cuda_is_chosen(role, geometry_, chosen):
    """As measured on an H100 in float32 (benchmarks/results/h100); float16 was not, so lax has it."""
    sizes = dict(window=(3, 3), groups=8, channels=1, filters=1) | geometry_
    rank = len(sizes["window"])
    options = {name: sizes[name] for name in ("strides", "dilation") if name in sizes}
    groups = sizes["groups"]
    kernel = (*sizes["window"], sizes["channels"], groups * sizes["filters"])
    facts = geometry((64, *(24,) * rank, groups * sizes["channels"]), kernel, padding=1, **options)[1]
    choose = lambda dtype: backends.choose(role, facts, jnp.dtype(dtype), "cuda", 64)
    assert choose("float32") == chosen
    assert choose("float16") == "lax"
    assert choose("bfloat16") == (chosen if rank == 1 else "lax"), "in 1-D it is computed in float32"


# --- what CUDA does not do -------------------------------------------------------------------------------------------


def as_on_cuda(case, dtype, arrays, role, name=None):
    """What the program for CUDA computes, run here: by XLA's own operations only."""
    facts = facts_of(case)
    name = name or backends.choose(role, facts, jnp.dtype(dtype), "cuda", arrays[0].shape[0])
    operands = dict(zip("xwy", arrays, strict=True))
    first, second = (jnp.asarray(operands[n]) for n in roles.OPERANDS[role])
    run = lambda a, b: roles._run(role, name, "cuda", a, b, geometry=facts, dtype=jnp.dtype(dtype), precision=None)
    return jax.jit(run)(first, second)


@pytest.mark.parametrize("name", [None, *(name for p, name in AVAILABLE if p == "cuda")])
@pytest.mark.parametrize("case", [c for c in cases.NAMED if len(c.batch) == 1 and c.padding_value == 0], ids=str)
def test_the_programs_for_cuda_compute_the_right_numbers(case, name):
    x, kernel, _, ct = case.arrays()
    got = {role: as_on_cuda(case, "float32", (x, kernel, ct), role, name) for role in "yxw"}
    cases.assert_matches(case, got, (x, kernel, None, ct))


def bfloat16_convolutions(text: str) -> list[str]:
    return [line for line in text.splitlines() if "stablehlo.convolution" in line and "bf16" in line]


@pytest.mark.parametrize("name", [None, *(name for p, name in AVAILABLE if p == "cuda")])
def test_no_convolution_of_bfloat16_in_1d_reaches_cuda(name):
    """https://github.com/jax-ml/jax/issues/37922"""
    (case,) = named("causal-dilated")
    text = lowered("cuda", all_roles(case, implementation=name), *shaped(case, "bfloat16"))
    assert not bfloat16_convolutions(text)
    assert name == "xla" or "stablehlo.convolution" in text, "it is one of float32"
    for role in "yxw":
        x, kernel, _, ct = case.arrays(jnp.bfloat16)
        got = as_on_cuda(case, "bfloat16", (x, kernel, ct), role, name)
        assert got.dtype == jnp.bfloat16
        cases.assert_matches(case, {role: got}, (x, kernel, None, ct))


@pytest.mark.parametrize("groups", [1, 2])
def test_nor_through_the_drop_in(groups):
    """The program of the issue, whose single group gconv otherwise leaves to lax."""
    run = lambda conv: lambda x, w: conv(x, w, (2,), "SAME", rhs_dilation=(2,), feature_group_count=groups)
    x, kernel = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((2, 4, 16), (16, 4 // groups, 3)))
    assert not bfloat16_convolutions(lowered("cuda", run(gconv.conv_general_dilated), x, kernel))
    assert bfloat16_convolutions(lowered("cuda", run(jax.lax.conv_general_dilated), x, kernel)), "which this would find"
    assert bfloat16_convolutions(lowered("tpu", run(gconv.conv_general_dilated), x, kernel)), "elsewhere it stays as it is"
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=s.shape), jnp.bfloat16) for s in (x, kernel)]
    got, expected = (run(conv)(*arrays) for conv in (gconv.conv_general_dilated, jax.lax.conv_general_dilated))
    np.testing.assert_allclose(np.float32(got), np.float32(expected), rtol=1e-2, atol=1e-2)


def test_nor_through_causal_conv1d():
    """Forwards and backwards, as in a state-space model."""
    x, kernel = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((2, 32, 6), (4, 1, 6)))
    loss = lambda x, w: jnp.float32(gconv.causal_conv1d(x, w)[0]).sum()
    text = lowered("cuda", jax.grad(loss, (0, 1)), x, kernel)
    assert not bfloat16_convolutions(text) and "stablehlo.convolution" in text
    assert bfloat16_convolutions(lowered("tpu", jax.grad(loss, (0, 1)), x, kernel))


FEW = named("dense-2d", "grouped-2d", "depthwise-2d")
INTEGERS = [(c, "int8") for c in (FEW[0], *CASES)] + [(c, d) for c in FEW for d in ("uint8", "int32")]


@pytest.mark.parametrize(("case", "dtype"), INTEGERS, ids=str)
def test_no_convolution_of_integers_reaches_cuda(case, dtype):
    """https://github.com/openxla/xla/issues/49123; int32 may have been int8 before, which XLA would recognize."""
    assert "stablehlo.convolution" not in lowered("cuda", all_roles(case), *shaped(case, dtype))
    x, kernel, _, ct = case.arrays(dtype)
    for role, expected in cases.expected(case, x, kernel, None, ct).items():
        got = as_on_cuda(case, dtype, (x, kernel, ct), role)
        np.testing.assert_array_equal(got, np.int64(expected).astype(dtype))  # both wrap around


def test_the_example_of_the_issue_about_int8():
    """Two groups of two channels and filters, a window of one pixel; sums beyond int8 wrap around."""
    rng = np.random.default_rng(1)
    case = cases.Case("1x1", (1,), (3, 3), (1, 1), 2, 2, 2)
    x, kernel = (rng.integers(-128, 128, shape).astype(np.int8) for shape in (case.x_shape, case.kernel_shape))
    exact = oracle.conv(x, kernel, **case.facts)
    assert abs(exact).max() > 127
    got = as_on_cuda(case, "int8", (x, kernel, np.zeros(case.y_shape, np.int8)), "y")
    np.testing.assert_array_equal(got, np.int64(exact).astype(np.int8))
    with pytest.raises(ValueError, match="implementation='lax' cannot run role 'y'.*openxla/xla 49123.*int8"):
        lowered("cuda", lambda x, w: gconv.grouped_conv(x, w, implementation="lax"), x, kernel)
