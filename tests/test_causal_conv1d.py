"""`causal_conv1d`: against loops, whole = chunks = single steps, packed segments, gradients, the ONNX operator."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from gconv.causal import causal_conv1d


def loops(x, kernel, bias=None, state=None, activation=None):
    """The definition in float64, one output at a time; knows nothing of gconv and nothing of JAX."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    window, *batch, time, channels = kernel.shape[0], *x.shape
    before = np.zeros((*batch, window - 1, channels)) if state is None else np.asarray(state, np.float64)
    y = np.zeros(x.shape)
    for t in range(time):
        for k in range(window):
            source = t + k - (window - 1)  # counted from the first sample of x, negative in the state
            sample = x[..., source, :] if source >= 0 else before[..., source + window - 1, :]
            y[..., t, :] += sample * kernel[k, 0]
    y = y if bias is None else y + np.asarray(bias, np.float64)
    y = y / (1 + np.exp(-y)) if activation else y
    latest = [x[..., t, :] if t >= 0 else before[..., t + window - 1, :] for t in range(time - window + 1, time)]
    return y, np.stack(latest, -2) if latest else np.zeros((*batch, 0, channels))


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def operands(batch=(2,), time=11, channels=3, window=4) -> dict:
    return {
        "x": draw(*batch, time, channels),
        "kernel": draw(window, 1, channels, seed=1),
        "bias": draw(channels, seed=2),
        "state": draw(*batch, window - 1, channels, seed=3),
    }


def assert_close(got, expected, tolerance=1e-5):
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert g.shape == e.shape
        np.testing.assert_allclose(np.asarray(g, np.float64), np.asarray(e, np.float64), rtol=tolerance, atol=tolerance)


# --- values ----------------------------------------------------------------------------------------------------------

SHAPES = (
    {},
    {"batch": ()},
    {"batch": (2, 3)},
    {"batch": (0,)},
    {"time": 1},
    {"time": 2},  # shorter than the window
    {"time": 3},
    {"time": 0},
    {"window": 1},
    {"window": 1, "time": 1},
    {"window": 7, "time": 3, "channels": 1},
)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("given", ((), ("bias",), ("state",), ("bias", "state")), ids=str)
def test_matches_loops(shape, given):
    a = operands(**shape)
    arguments = {name: a[name] for name in ("x", "kernel", *given)}
    activation = {1: "silu", 2: "swish"}.get(len(given))
    got = jax.jit(lambda a: causal_conv1d(**a, activation=activation))(arguments)
    assert_close(got, loops(**arguments, activation=activation))


@pytest.mark.parametrize("dtype", ("float16", "bfloat16", "float64", "complex64", "int32"))
@pytest.mark.parametrize("segments", (None, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), ids=("plain", "segments"))
def test_dtypes(dtype, segments, x64):
    a = {name: (3 * array).astype(dtype) for name, array in operands(batch=()).items()}
    y, state = causal_conv1d(**a, segment_ids=None if segments is None else jnp.array(segments))
    assert y.dtype == state.dtype == dtype
    kind = np.complex128 if dtype == "complex64" else np.float64
    rows = np.concatenate([a["state"], a["x"]]).astype(kind)
    expected = sum(rows[k : k + 11] * a["kernel"][k, 0].astype(kind) for k in range(4)) + a["bias"].astype(kind)
    tolerance = {"float16": 1e-2, "bfloat16": 5e-2}.get(dtype, 1e-5)
    np.testing.assert_allclose(np.asarray(y).astype(kind), expected, rtol=tolerance, atol=5 * tolerance)
    np.testing.assert_array_equal(state, a["x"][-3:])


@pytest.mark.usefixtures("lenient")
def test_state_keeps_the_dtype_of_x():
    a = operands()
    y, state = causal_conv1d(a["x"].astype("bfloat16"), a["kernel"])
    assert (y.dtype, state.dtype) == ("float32", "bfloat16")


@pytest.mark.parametrize("dtype", ("float16", "bfloat16"))
def test_silu_is_worked_out_in_float32(dtype):
    x = np.linspace(-8, 8, 101).astype(dtype)[:, None]
    y, _ = causal_conv1d(x, np.ones((1, 1, 1), dtype), activation="silu")
    wide = x.astype(np.float32)
    np.testing.assert_array_equal(y, (wide / (1 + np.exp(-wide))).astype(dtype))


# --- whole, chunks, steps --------------------------------------------------------------------------------------------


def cut(length: int, seed: int) -> list[slice]:
    """Random chunks, also empty ones and ones of a single sample."""
    rng = random.Random(seed)
    ends = sorted(rng.randrange(length + 1) for _ in range(rng.randrange(1, 6)))
    return [slice(lo, hi) for lo, hi in zip([0, *ends], [*ends, length], strict=True)]


def run_chunks(x, chunks, state=None, segment_ids=None, **options):
    ys = []
    for chunk in chunks:
        ids = None if segment_ids is None else segment_ids[:, chunk]
        y, state = causal_conv1d(x[:, chunk], state=state, segment_ids=ids, **options)
        ys.append(y)
    return jnp.concatenate(ys, axis=1), state


@pytest.mark.parametrize("seed", range(8))
def test_chunks_give_the_numbers_of_the_whole(seed):
    a = operands(time=13, window=1 + seed % 5)
    options = {"kernel": a["kernel"], "bias": a["bias"], "activation": "silu"}
    state = a["state"] if seed % 2 else None
    assert_close(run_chunks(a["x"], cut(13, seed), state, **options), causal_conv1d(a["x"], state=state, **options))


def test_steps_give_the_numbers_of_the_whole_in_a_scan():
    a = operands()
    options = {"kernel": a["kernel"], "bias": a["bias"], "activation": "silu"}

    def step(state, sample):
        y, state = causal_conv1d(sample[:, None], state=state, **options)
        return state, y[:, 0]

    state, y = jax.jit(lambda s, x: jax.lax.scan(step, s, jnp.moveaxis(x, 1, 0)))(a["state"], a["x"])
    assert_close((jnp.moveaxis(y, 0, 1), state), causal_conv1d(a["x"], state=a["state"], **options))


def test_outputs_ignore_the_future():
    a = operands()
    later = a["x"].copy()
    later[:, 6:] = np.nan
    np.testing.assert_allclose(
        causal_conv1d(later, a["kernel"])[0][:, :6], causal_conv1d(a["x"], a["kernel"])[0][:, :6], rtol=1e-6
    )


# --- segments --------------------------------------------------------------------------------------------------------

# Ids may come again: neighbours of the same id are a segment, whatever stands further away.
ROWS = np.array([[5, 5, 5, 5, 5, 2, 2, 2, 2, 2, 2, 2, 2], [1, 0, 1, 1, 1, 0, 0, 7, 7, 1, 1, 3, 3], [0] * 13])


def segments_of(ids) -> list[slice]:
    ends = [t for t in range(1, len(ids)) if ids[t] != ids[t - 1]]
    return [slice(lo, hi) for lo, hi in zip([0, *ends], [*ends, len(ids)], strict=True)]


def one_by_one(x, ids, kernel, bias, state=None, activation=None):
    """Every segment convolved on its own; the first of a row continues its state."""
    ys, states = [], []
    for row, row_ids in enumerate(ids):
        parts = []
        for segment in segments_of(row_ids):
            before = state[row] if state is not None and segment.start == 0 else None
            y, after = loops(x[row, segment], kernel, bias, before, activation)
            parts.append(y)
        ys.append(np.concatenate(parts))
        states.append(after)
    return np.stack(ys), np.stack(states)


@pytest.mark.parametrize("window", (1, 2, 4, 6))
@pytest.mark.parametrize("with_state", (False, True))
def test_segments_are_convolved_separately(window, with_state):
    a = operands(batch=(3,), time=13, window=window)
    options = {"state": a["state"] if with_state else None, "activation": "silu"}
    got = jax.jit(lambda x, ids: causal_conv1d(x, a["kernel"], a["bias"], segment_ids=ids, **options))(a["x"], ROWS)
    assert_close(got, one_by_one(a["x"], ROWS, a["kernel"], a["bias"], **options))


@pytest.mark.parametrize("seed", range(6))
def test_chunks_within_segments_give_the_numbers_of_the_whole(seed):
    """Cut anywhere: a state goes on where the segment does, and is replaced by zeros where a new one begins."""
    a = operands(batch=(3,), time=13, window=2 + seed % 4)
    expected = causal_conv1d(a["x"], a["kernel"], segment_ids=ROWS, state=a["state"])
    state, ys = a["state"], []
    for chunk in cut(13, seed):
        if 0 < chunk.start < 13:
            goes_on = ROWS[:, chunk.start] == ROWS[:, chunk.start - 1]
            state = jnp.where(goes_on[:, None, None], state, 0)
        y, state = causal_conv1d(a["x"][:, chunk], a["kernel"], segment_ids=ROWS[:, chunk], state=state)
        ys.append(y)
    assert_close((jnp.concatenate(ys, 1), state), expected)


def test_one_segment_is_no_segment():
    a = operands()
    assert_close(causal_conv1d(**a, segment_ids=np.full((2, 11), 3)), causal_conv1d(**a))


def test_no_nan_leaks_between_segments():
    a = operands(batch=(1,), time=8)
    ids = np.array([[0, 0, 0, 1, 1, 2, 2, 2]])
    spoilt = a["x"].copy()
    spoilt[:, 3:5] = np.nan

    def run(x, kernel):
        y, state = causal_conv1d(x, kernel, segment_ids=ids)
        return jnp.where(ids[..., None] == 1, 0, y).sum(), (y, state)

    gradients, (y, state) = jax.grad(run, (0, 1), has_aux=True)(spoilt, a["kernel"])
    clean, (clean_y, clean_state) = jax.grad(run, (0, 1), has_aux=True)(a["x"], a["kernel"])
    sound = [0, 1, 2, 5, 6, 7]
    assert np.isnan(y[:, 3:5]).all()
    assert_close((y[:, sound], state, gradients[0][:, sound]), (clean_y[:, sound], clean_state, clean[0][:, sound]))


# --- transformations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", (None, np.array([[0, 0, 1, 1, 1, 1], [4, 4, 4, 4, 4, 5]])), ids=("plain", "segments"))
def test_gradients(ids, x64):
    a = {name: array.astype(np.float64) for name, array in operands(time=6).items()}
    for name in a:

        def of_one(value, name=name):
            y, state = causal_conv1d(**(a | {name: value}), activation="silu", segment_ids=ids)
            return y, jnp.sin(state)

        check_grads(of_one, (a[name],), order=2, modes=("fwd", "rev"))


def test_vmap_over_anything():
    a = operands(batch=(3, 2))
    kernels = draw(3, 4, 1, 3, seed=9)
    got = jax.vmap(lambda x, kernel, state: causal_conv1d(x, kernel, state=state))(a["x"], kernels, a["state"])
    for i in range(3):
        assert_close([g[i] for g in got], loops(a["x"][i], kernels[i], state=a["state"][i]))


@pytest.mark.parametrize("with_state", (False, True), ids=("zeros", "state"))
@pytest.mark.parametrize("packed", (False, True), ids=("plain", "segments"))
@pytest.mark.parametrize("how", ("explicit", "auto", "shard_map"))
def test_on_a_mesh(how, packed, with_state):
    """The batch over one of two axes: the results and gradients of one device."""
    a = operands(batch=(4,), time=9)
    ids = np.repeat(np.arange(3), 3)[None].repeat(4, 0) if packed else None
    of_batch = {"x": a["x"]} | ({"state": a["state"]} if with_state else {}) | ({"segment_ids": ids} if packed else {})

    def outputs(of_batch, kernel):
        return causal_conv1d(**of_batch, kernel=kernel, bias=a["bias"], activation="silu")

    def loss(of_batch, kernel, run):
        y, state = run(of_batch, kernel)
        return (y**2).sum() + (state**3).sum()

    gradient = lambda run: jax.jit(lambda b, k: (run(b, k), jax.grad(lambda k: loss(b, k, run))(k)))
    expected = gradient(outputs)(of_batch, a["kernel"])
    kind = AxisType.Explicit if how == "explicit" else AxisType.Auto
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind, kind), devices=jax.devices()[:4])
    data, whole = PartitionSpec("data"), PartitionSpec()
    with jax.set_mesh(mesh):
        run = jax.shard_map(outputs, in_specs=(data, whole), out_specs=data) if how == "shard_map" else outputs
        sharded = jax.device_put((of_batch, a["kernel"]), (NamedSharding(mesh, data), NamedSharding(mesh, whole)))
        assert_close(gradient(run)(*sharded), expected)


def test_gconv_runs_what_has_no_segments(implementation):
    a = operands()
    run = lambda name: jax.jit(lambda a: causal_conv1d(**a, implementation=name))
    assert "gconv_y_" in run(None).lower(a).as_text(debug_info=True)
    try:
        got = run(implementation)(a)
    except ValueError as error:
        pytest.skip(str(error))
    assert_close(got, loops(**a))


# --- ONNX ------------------------------------------------------------------------------------------------------------


def onnx_cases(monkeypatch) -> list[dict]:
    """What the operator's own test generator expects: node, inputs, outputs, name."""
    pytest.importorskip("onnx", reason="onnx is not installed: pip install onnx")
    reason = "CausalConvWithState came with onnx 1.22"
    module = pytest.importorskip("onnx.backend.test.case.node.causal_conv_with_state", reason=reason)
    cases: list[dict] = []
    monkeypatch.setattr(module, "expect", lambda node, **case: cases.append({"node": node, **case}))
    for name in dir(module.CausalConvWithState):
        if name.startswith("export_"):
            getattr(module.CausalConvWithState, name)()
    return cases


def test_agrees_with_onnx(monkeypatch):
    cases = onnx_cases(monkeypatch)
    assert len(cases) >= 13
    for case in cases:
        given = dict(zip((name for name in case["node"].input if name), case["inputs"], strict=True))
        activation = next((a.s.decode() for a in case["node"].attribute if a.name == "activation"), None)
        state = given.get("past_state")
        y, new_state = causal_conv1d(
            given["input"].swapaxes(1, 2),
            given["weight"].transpose(2, 1, 0),
            given.get("bias"),
            state=None if state is None else state.swapaxes(1, 2),
            activation=None if activation == "none" else activation,
        )
        assert y.dtype == case["outputs"][0].dtype
        tolerance = 2e-3 if y.dtype == np.float16 else 1e-5
        assert_close((y.swapaxes(1, 2), new_state.swapaxes(1, 2)), tuple(case["outputs"]), tolerance)


# --- errors ----------------------------------------------------------------------------------------------------------

IDS = np.zeros((2, 11), np.int32)
WRONG = {
    "x": ({"x": draw(3)}, ValueError, r"`x` must have shape \(\*batch, time, channels\), got \(3,\)"),
    "kernel rank": ({"kernel": draw(4, 3)}, ValueError, r"`kernel` .*\(4, 3\)\. A shape that works: \(4, 1, 3\)"),
    "kernel channels": ({"kernel": draw(4, 1, 5)}, ValueError, r"3 channels.*\(4, 1, 5\)\. A shape that works: \(4, 1, 3\)"),
    "kernel empty": ({"kernel": draw(0, 1, 3)}, ValueError, r"A shape that works: \(4, 1, 3\)"),
    "kernel scalar": ({"kernel": np.float32(1)}, ValueError, r"A shape that works: \(4, 1, 3\)"),
    "bias": ({"bias": draw(1, 3)}, ValueError, r"`bias` .*\(1, 3\).*A shape that works: \(3,\)"),
    "state length": ({"state": draw(2, 4, 3)}, ValueError, r"`state` .*the 3 inputs.*A shape that works: \(2, 3, 3\)"),
    "state dtype": ({"state": draw(2, 3, 3).astype("float16")}, TypeError, r"float16 and float32.*state\.astype\('float32'\)"),
    "ids shape": ({"segment_ids": IDS[0]}, ValueError, r"`segment_ids` .*\(11,\).*A shape that works: \(2, 11\)"),
    "ids dtype": ({"segment_ids": IDS.astype("float32")}, TypeError, r"`segment_ids` must be integers.*astype\('int32'\)"),
    "activation": ({"activation": "relu"}, ValueError, '`activation` must be None, "silu" or "swish", got \'relu\''),
    "unknown": ({"implementation": "fast"}, ValueError, "`implementation` must be None or one of"),
    "masked by name": ({"implementation": "lax", "segment_ids": IDS}, ValueError, "'lax' cannot run with `segment_ids`"),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors(name):
    wrong, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        causal_conv1d(**(operands() | wrong))


def test_numeric_dtypes_only():
    with pytest.raises(TypeError, match="numeric dtype, got bool"):
        causal_conv1d(np.ones((4, 3), bool), np.ones((2, 1, 3), bool))
    with pytest.raises(TypeError, match="`activation`='silu' needs a floating dtype, got int32"):
        causal_conv1d(np.ones((4, 3), np.int32), np.ones((2, 1, 3), np.int32), activation="silu")
