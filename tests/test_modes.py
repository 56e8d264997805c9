"""Every switch that JAX has for debugging, and its rarer transformations and platforms: the same numbers in all of them."""

import contextlib
import re
import subprocess
import sys
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from absl.testing import parameterized
from cases import NAMED, Case, draw
from flax import nnx
from jax import lax
from jax.experimental.jet import jet

import gconv
from gconv import backends, roles

GROUPED = next(case for case in NAMED if case.name == "grouped-2d")
NAMES = ("depthwise-2d", "grouped-2d", "dense-2d", "causal-1d", "filled-with-a-number")
CASES = [case for case in NAMED if case.name in NAMES]


def with_gradients(case, implementation=None):
    def run(x, kernel, bias, ct):
        conv = partial(gconv.grouped_conv, **case.options, implementation=implementation)
        y, pull = jax.vjp(lambda x, k, b: conv(x, k, b), x, kernel, bias)
        return (y, *pull(ct))

    return run


def arrays(case):
    x, kernel, bias, ct = case.arrays()
    return x, kernel, np.ones(kernel.shape[-1:], "float32") if bias is None else bias, ct


def exact(case, x, kernel, bias, ct):
    facts = case.facts
    gradients = (
        oracle.input_gradient(ct, kernel, x.shape, **facts),
        oracle.kernel_gradient(x, ct, kernel.shape, **facts),
        np.asarray(ct, np.float64).reshape(-1, ct.shape[-1]).sum(0),
    )
    return (oracle.conv(x, kernel, bias, **facts), *gradients)


def close(got, expected):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(np.abs(b).max(initial=0), 1))


# --- switches --------------------------------------------------------------------------------------------------------


def option(name, value):
    """A setting of `jax.config` for a while."""

    @contextlib.contextmanager
    def inside():
        before = getattr(jax.config, name)
        jax.config.update(name, value)
        try:
            yield
        finally:
            jax.config.update(name, before)

    return inside


SWITCHES = {
    "disable_jit": jax.disable_jit,
    "debug_nans": lambda: jax.debug_nans(True),
    "debug_infs": lambda: jax.debug_infs(True),
    "checking_leaks": jax.checking_leaks,
    "log_compiles": lambda: jax.log_compiles(True),
    "enable_checks": option("jax_enable_checks", True),
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "dtype promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "64 bits": lambda: jax.enable_x64(True),
    "transfer_guard": lambda: jax.transfer_guard("disallow"),
    "precision": lambda: jax.default_matmul_precision("highest"),
    "traceback": option("jax_traceback_filtering", "off"),
    "no shardy": option("jax_use_shardy_partitioner", False),
}


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch(name, case):
    given = arrays(case)
    operands = [jnp.asarray(a) for a in given]
    runs = [jax.jit(with_gradients(case))]
    if name != "transfer_guard":  # outside jit JAX's own functions move their constants
        runs.append(with_gradients(case))
    with SWITCHES[name]():
        results = [run(*operands) for run in runs]
    for result in results:
        close(jax.device_get(result), exact(case, *given))


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_for_layers_sequences_and_the_drop_in(name):
    layer = gconv.nnx.GroupedConv(6, 3, 2, 3, padding="same", rngs=nnx.Rngs(0))
    x = jnp.asarray(draw(np.random.default_rng(0), (2, 8, 7, 6), "float32"))
    sequence = x.reshape(2, 56, 6)
    kernel, bias = jnp.ones((4, 1, 6)), jnp.ones(6)
    ids = jnp.zeros((2, 56), "int32")

    def run(x, sequence):
        y, state = gconv.causal_conv1d(sequence, kernel, bias, activation="silu", segment_ids=ids)
        z, _ = gconv.causal_conv1d(sequence, kernel, bias, activation="silu", state=state)
        dropped = gconv.conv_general_dilated(
            x, layer.kernel[...], (1, 1), "SAME", feature_group_count=3, dimension_numbers=NHWC
        )
        return layer(x), y, z, dropped

    NHWC = ("NHWC", "HWIO", "NHWC")
    expected = run(x, sequence)
    with SWITCHES[name]():
        got = (jax.jit(run) if name == "transfer_guard" else run)(x, sequence)
    close(got, expected)
    close((got[3],), (got[0] - layer.bias[...].reshape(1, 1, 1, -1),))


@pytest.mark.parametrize("implementation", backends.TABLE)
@pytest.mark.parametrize("dtype", ("bfloat16", "float16"))
def test_half_precision_in_strict_modes(dtype, implementation):
    x, kernel, _, ct = GROUPED.arrays(dtype)
    if reason := backends.TABLE[implementation].why_not("y", None or facts(GROUPED), jnp.dtype(dtype), "cpu"):
        pytest.skip(f"{implementation}: {reason}")
    conv = partial(gconv.grouped_conv, **GROUPED.options, implementation=implementation)
    y, pull = jax.vjp(conv, x, kernel)
    assert [a.dtype for a in (y, *pull(jnp.asarray(ct)))] == [jnp.dtype(dtype)] * 3
    np.testing.assert_allclose(np.float64(y), oracle.conv(x, kernel, **GROUPED.facts), rtol=0.02, atol=0.05)


def facts(case):
    options = {name: value for name, value in case.options.items() if name != "padding_value"}
    return gconv.geometry.geometry(case.x_shape, case.kernel_shape, **options)[1]


class Variants(chex.TestCase):
    """With and without jit, on the device and on the host."""

    @chex.all_variants
    @parameterized.named_parameters((str(case), case) for case in CASES)
    def test_values_and_gradients(self, case):
        given = arrays(case)
        got = self.variant(with_gradients(case))(*given)
        chex.assert_trees_all_close(tuple(map(np.float64, got)), exact(case, *given), rtol=1e-5, atol=1e-4)


def test_nothing_is_traced_twice():
    x, kernel, *_ = map(jnp.asarray, arrays(GROUPED))
    run = jax.jit(chex.assert_max_traces(lambda x, k: gconv.grouped_conv(x, k, **GROUPED.options), n=1))
    for _ in range(3):
        run(x, kernel)


def test_outside_jit_nothing_is_compiled_twice(caplog):
    x, kernel, *_ = map(jnp.asarray, arrays(GROUPED))
    numbers = ("NHWC", "HWIO", "NHWC")

    def both():
        dropped = gconv.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=3)
        return gconv.grouped_conv(x, kernel, **GROUPED.options), dropped

    both()
    with jax.log_compiles(True):
        both()
    assert "Compiling" not in caplog.text


def test_eager_programs_have_names(caplog):
    case = Case("named", (1,), (6,), (3,), 2, 2, 2)
    x, kernel, _, ct = map(jnp.asarray, arrays(case))
    with jax.log_compiles(True):
        _, pull = jax.vjp(partial(gconv.grouped_conv, **case.options), x, kernel)
        pull(ct)
    assert {f"jit(grouped_conv_{role})" for role in "yxw"} <= {*re.findall(r"jit\(\w+\)", caplog.text)}


# --- transformations that few know -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES[:2], ids=str)
def test_jet(case):
    """Derivatives along a curve, against forward mode three times over."""
    x, kernel, *_ = arrays(case)
    rng = np.random.default_rng(3)
    dx, ddx, dk, ddk = (draw(rng, a.shape, "float32") / 4 for a in (x, x, kernel, kernel))
    conv = partial(gconv.grouped_conv, **case.options)
    function = lambda x, k: jnp.sin(conv(x, k))
    curve = lambda t: function(x + t * dx + t * t / 2 * ddx, kernel + t * dk + t * t / 2 * ddk)
    value, series = jet(function, (x, kernel), ((dx, ddx), (dk, ddk)))
    first = jax.jacfwd(curve)
    close((value, *series), (curve(0.0), first(0.0), jax.jacfwd(first)(0.0)))
    zeros = jet(conv, (x, kernel), ((dx, ddx), (jnp.zeros_like(kernel), jnp.zeros_like(kernel))))[1]
    close(zeros, (conv(dx, kernel), conv(ddx, kernel)))


def test_a_policy_that_saves_convolutions():
    x, kernel, *_ = map(jnp.asarray, arrays(GROUPED))
    kernel = jnp.ones((3, 3, 2, 6))
    policies = jax.checkpoint_policies

    def convolutions(policy):
        def loss(x, kernel):
            y = jnp.sin(gconv.grouped_conv(x, kernel, groups=3, padding=1))
            y = jnp.sin(
                lax.conv_general_dilated(y, jnp.ones((1, 1, 6, 6)), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            )
            return jnp.sin(gconv.grouped_conv(y, kernel, groups=3, padding=1)).sum()

        text = str(jax.make_jaxpr(jax.grad(jax.checkpoint(loss, policy=policy), (0, 1)))(x, kernel))
        return text.count("grouped_conv_y["), text.count("conv_general_dilated[")

    assert convolutions(policies.nothing_saveable) == (4, 3), "two of ours and one of lax again"
    assert convolutions(policies.dots_saveable)[0] == 4, "JAX's policy knows lax's only"
    assert convolutions(gconv.convolutions_saveable) == convolutions(policies.everything_saveable) == (2, 2)
    both = policies.save_from_both_policies(gconv.convolutions_saveable, policies.dots_with_no_batch_dims_saveable)
    assert convolutions(both) == (2, 2)


# --- platforms and types ---------------------------------------------------------------------------------------------


def test_a_platform_that_gconv_does_not_know():
    """What has a plug-in of its own (METAL, neuron, oneapi) takes what lax lowers to: the rule without a platform."""
    from jax._src.interpreters import mlir as rules

    x, kernel, _, ct = arrays(GROUPED)
    run = lambda x, k, ct: jax.vjp(partial(gconv.grouped_conv, **GROUPED.options), x, k)[1](ct)
    for primitive in roles.PRIMITIVES.values():
        assert primitive in rules._lowerings
    known = rules._platform_specific_lowerings
    kept = {platform: {p: known[platform].pop(p) for p in roles.PRIMITIVES.values()} for platform in ("cpu",)}
    try:
        text = jax.jit(run).lower(x, kernel, ct).as_text(debug_info=True)
    finally:
        known["cpu"].update(kept["cpu"])
    assert "gconv_x_lax" in text and "gconv_w_lax" in text
    assert "gconv_x_native" not in text and "gconv_w_xla" not in text


FLOATS = ("float8_e4m3fn", "float8_e5m2", "int4")


@pytest.mark.parametrize("implementation", (None, "lax"))
@pytest.mark.parametrize("dtype", FLOATS)
def test_types_for_which_jax_has_no_promotion(dtype, implementation):
    kind = jnp.dtype(dtype)
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.integers(-1, 2, shape)).astype(kind) for shape in ((1, 5, 6, 4), (2, 3, 2, 4)))
    conv = partial(gconv.grouped_conv, groups=2, implementation=implementation)
    expected = oracle.conv(np.float64(x), np.float64(kernel), groups=2, strides=(1, 1), pads=((0, 0), (0, 0)), dilation=(1, 1))
    y = conv(x, kernel)
    assert y.dtype == kind
    if kind.kind != "i" and dtype != "int4":
        np.testing.assert_array_equal(np.float64(y), np.float64(jnp.asarray(expected).astype(kind)))
        gradients = jax.grad(lambda x, k: conv(x, k).astype("float32").sum(), (0, 1))(x, kernel)
        assert [g.dtype for g in gradients] == [kind, kind]
        wide = conv(x, kernel, preferred_element_type="float32")
        np.testing.assert_array_equal(np.float64(wide), expected)
    for platform in ("cuda", "tpu") if dtype != "int4" else ():
        jax.jit(conv).trace(x, kernel).lower(lowering_platforms=(platform,))
    dense = gconv.grouped_conv(x, kernel[:, :, :1].repeat(4, axis=2), groups=1, implementation=implementation)
    assert dense.dtype == kind


def test_numbers_that_the_kernels_do_not_take():
    x, kernel, *_ = map(jnp.asarray, arrays(GROUPED))
    far = dict(groups=3, strides=2**33, padding=1)
    close((gconv.grouped_conv(x, kernel, **far),), (gconv.grouped_conv(x, kernel, **{**far, "strides": 8}),))
    for implementation, match in (("native", "up to 2\\^31, got 8589934592|not built"), ("xla", "copies each image")):
        options = (
            dict(far, implementation=implementation)
            if implementation == "native"
            else {"groups": 3, "dilation": 2**31, "padding": 2**31, "implementation": "xla"}
        )
        with pytest.raises(ValueError, match=match):
            gconv.grouped_conv(x, kernel, **options)
    row = gconv.grouped_conv(x[0], kernel[0], groups=3, dilation=2**32, padding=2**32)
    close((row,), (gconv.grouped_conv(x[0], kernel[0, 1:2], groups=3),))


@pytest.mark.parametrize("dilation", (2**18, 2**24, 2**32))
@pytest.mark.parametrize("implementation", (None, "lax"))
def test_dilations_that_reach_far(implementation, dilation):
    """The middle tap meets every sample, the others none: XLA's own kernel gradient is wrong from 2^24 on."""
    x, kernel, ct = (jnp.asarray(draw(np.random.default_rng(0), s, "float32")) for s in ((2, 9, 6), (3, 2, 6), (2, 9, 6)))
    far = partial(gconv.grouped_conv, groups=3, dilation=dilation, padding=dilation, implementation=implementation)
    y, pull = jax.vjp(far, x, kernel)
    near, pull_near = jax.vjp(partial(gconv.grouped_conv, groups=3), x, kernel[1:2])
    dx, dk = pull_near(ct)
    close((y, *pull(ct)), (near, dx, jnp.pad(dk, ((1, 1), (0, 0), (0, 0)))))


def foreign_arrays():
    yield "list", [[1.0]], "must be an array, got list"
    yield "big-endian", np.ones((1, 5, 6, 4), ">f4"), "this machine's byte order, got dtype '>f4'"
    yield "booleans", np.ones((1, 5, 6, 4), bool), "numeric dtype, got bool"
    try:
        import torch
    except ImportError:
        return
    yield "torch", torch.ones(1, 5, 6, 4), r"array of NumPy or JAX, got a torch.Tensor of torch.float32. jax.numpy.asarray"


@pytest.mark.parametrize("kind, value, match", [pytest.param(*given, id=given[0]) for given in foreign_arrays()])
def test_what_is_no_array(kind, value, match):
    kernel = jnp.ones((2, 3, 2, 4))
    calls = {
        "x": lambda v: gconv.grouped_conv(v, kernel),
        "y": lambda v: gconv.grouped_conv_transpose(v, kernel, groups=2),
        "kernel": lambda v: gconv.grouped_conv(jnp.ones((1, 5, 6, 4)), v),
        "bias": lambda v: gconv.grouped_conv(jnp.ones((1, 5, 6, 4)), kernel, v),
        "state": lambda v: gconv.causal_conv1d(jnp.ones((1, 5, 4)), jnp.ones((3, 1, 4)), state=v),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=f"`{name}` .*{match}"):
            call(value)
    if kind in ("list", "torch"):
        with pytest.raises(TypeError, match=f"`lhs` .*{match}"):
            gconv.conv_general_dilated(value, kernel, (1, 1), "SAME")
    for call in (lambda v: gconv.causal_conv1d(v, kernel), lambda v: gconv.explain(v, kernel)):
        with pytest.raises(TypeError, match=f"`x` .*{match}"):
            call(value)


# --- programs that come from elsewhere -------------------------------------------------------------------------------

LOADED = """
import pickle, sys, numpy as np, jax
from jax.experimental import serialize_executable
import gconv
assert gconv.register_kernels() and gconv.register_kernels()
with open("program", "rb") as file:
    program = serialize_executable.deserialize_and_load(*pickle.load(file), execution_devices=jax.devices()[:1])
np.save("y.npy", program(np.load("x.npy"), np.load("kernel.npy")))
"""


def test_an_executable_that_another_process_compiled(tmp_path):
    import pickle

    from jax.experimental import serialize_executable

    if reason := gconv.implementations("cpu")["native"]:
        pytest.skip(f"native: {reason}")
    x, kernel, *_ = arrays(GROUPED)
    conv = jax.jit(partial(gconv.grouped_conv, **GROUPED.options, implementation="native"))
    compiled = conv.lower(x, kernel).compile()
    (tmp_path / "program").write_bytes(pickle.dumps(serialize_executable.serialize(compiled)))
    np.save(tmp_path / "x.npy", x), np.save(tmp_path / "kernel.npy", kernel)
    done = subprocess.run([sys.executable, "-c", LOADED], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), conv(x, kernel))


CACHED = """
import os, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import jax, numpy as np
from jax._src import monitoring
import gconv
folder, portable = sys.argv[1:]
jax.config.update("jax_compilation_cache_dir", folder)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", portable == "yes")
events = []
monitoring.register_event_listener(lambda name, **_: events.append(name))
mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
rng = np.random.default_rng(0)
x, kernel = rng.standard_normal((4, 16, 16, 16), np.float32), rng.standard_normal((3, 3, 4, 16), np.float32)
options = [dict(dilation=d) for d in (1, 2, 3)] + [dict(padding=p) for p in ((0, 2, 0, 2), (2, 0, 2, 0))]
options += [dict(padding="same", strides=2), dict(padding=1, precision="highest"), dict(padding=1)]
for given in options:
    def run(x, kernel, given=given):
        y, pull = jax.vjp(lambda x, k: gconv.grouped_conv(x, k, groups=4, **given), x, kernel)
        return y, *pull(y)
    expected = run(x, kernel)
    before = len(events)
    got = jax.jit(run)(jax.device_put(x, split), kernel)
    hits = sum("cache_hits" in name for name in events[before:])
    for a, b in zip(got, expected):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())
    print("hit" if hits else "miss")
"""


@pytest.mark.parametrize("portable", ("yes", "no"))
def test_the_persistent_cache_on_several_devices(tmp_path, portable):
    """Programs that differ in one option only are not taken for each other, and a second process finds them."""
    command = [sys.executable, "-c", CACHED, str(tmp_path), portable]
    found = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        found.append(done.stdout.split())
    assert found[0] == ["miss"] * 8
    assert found[1] == (["hit"] if portable == "yes" else ["miss"]) * 8
