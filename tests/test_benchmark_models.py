"""The networks of the benchmarks: as large as their papers say, equal by whomever they are run; memory, profile."""

import contextlib
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gconv
from benchmarks.measuring.work import Prepared
from benchmarks.parts import networks as parts
from benchmarks.programs import contenders, memory, networks, profile, steps
from benchmarks.reporting import tables

# Models as users write them, and optax, mix ranks and types.
pytestmark = pytest.mark.usefixtures("lenient")

NAMES = [*networks.NETWORKS]
SIZE = 32
TORCH = importlib.util.find_spec("torch") is not None


@pytest.mark.parametrize("name", networks.PARAMETERS)
def test_parameters_are_those_of_the_papers(name):
    model = nnx.eval_shape(lambda: networks.NETWORKS[name](networks.gconv_layer, rngs=nnx.Rngs(0)))
    assert networks.parameters(model) == networks.PARAMETERS[name]


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_equal(name):
    outputs = {conv: steps.flax_inference(name, layer, 2, SIZE).result() for conv, layer in networks.CONVS.items()}
    want = outputs["nnx.Conv"]
    assert want.shape == ((2, SIZE, 256) if name == "mamba" else (2, 1000)) and np.ptp(want) > 0.1
    np.testing.assert_allclose(outputs["gconv"], want, rtol=0, atol=2e-5 * np.abs(want).max())
    fused = steps.flax_inference(name, networks.flax_layer, 2, SIZE, change=gconv.fuse).result()  # of weights as arguments
    np.testing.assert_allclose(fused, want, rtol=0, atol=5e-6 * np.abs(want).max())
    for peer in ("nnx.Conv fused", "PyTorch channels_last", "ONNX Runtime"):
        work = contenders.INFERENCE[peer](name, 2, SIZE)
        if isinstance(work, Prepared):  # else it is not installed
            np.testing.assert_allclose(work.result(), want, rtol=0, atol=2e-5 * np.abs(want).max(), err_msg=peer)


# In float64, because batch norm over few values magnifies roundings. Two networks stand for all: the others' layers are theirs.
@pytest.mark.parametrize("name", ["mobilenet_v2", "mamba"])
def test_a_training_step_is_the_same(name, x64, monkeypatch):
    monkeypatch.setattr(networks.MobileNetV2, "STAGES", ((1, 16, 1, 1), (6, 24, 2, 2)))  # every kind of block that it has
    nothing = contextlib.nullcontext, lambda model: None
    kinds = {conv: (layer, *nothing) for conv, layer in networks.CONVS.items()}
    kinds["accelerated"] = networks.flax_layer, gconv.accelerated, gconv.accelerate
    found = {}
    for kind, (layer, around, change) in kinds.items():
        step, state = steps.training_step(name, layer, change=change)
        x, labels = steps.example(name, 4, 64)
        state, x = jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, (state, jnp.asarray(x)))
        with around():
            made = jax.jit(step)(*state, x, jnp.asarray(labels, x.dtype if name == "mamba" else jnp.int32))
        found[kind] = jax.tree.leaves(made)
    want = found.pop("nnx.Conv")
    assert len(want) > 10 and want[0].dtype == jnp.float64
    for values in found.values():
        for got, expected in zip(values, want, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-9)


def test_a_training_step_trains():
    run = steps.flax_training("mamba", networks.gconv_layer, 2, SIZE).run
    losses = [float(run()[0]) for _ in range(20)]
    assert losses[-1] < losses[0]


def test_pytorch_trains_alike():
    if not TORCH:
        pytest.skip("PyTorch is not installed")
    ours = steps.flax_training("mamba", networks.gconv_layer, 2, SIZE).run
    theirs = steps.torch_training("mamba", 2, SIZE, channels_last=False).run
    for _ in range(3):
        assert float(ours()[0]) == pytest.approx(theirs().item(), rel=1e-4)


# --- who is compared -------------------------------------------------------------------------------------------------


def test_a_step_tells_its_gradient():
    """So that quick runs compare gradients: the first step of SGD is the gradient times the rate."""
    step, (params, *rest) = steps.training_step("mamba", networks.flax_layer)
    x, labels = map(jnp.asarray, steps.example("mamba", 2, SIZE))
    after = jax.jit(step)(params, *rest, x, labels)[1]
    squares = jax.tree.map(lambda a, b: (((a - b) / steps.RATE) ** 2).sum(), params, after)
    want = np.sqrt(sum(jax.tree.leaves(squares)))
    loss, got = steps.flax_training("mamba", networks.flax_layer, 2, SIZE).result()
    assert loss > 0 and got == pytest.approx(want, rel=1e-3)
    if TORCH:
        assert steps.torch_training("mamba", 2, SIZE, channels_last=True).result()[1] == pytest.approx(got, rel=1e-3)


def test_a_training_step_in_bfloat16(monkeypatch):
    """The quick run compares everyone. Two are compared with themselves in float32, in which their parameters stay."""
    monkeypatch.setattr(contenders.shutil, "which", lambda name: None)  # PyTorch's compiler takes a minute
    bounds = {"flops": {"float32": 1e9, "bfloat16": 2e9}}
    (row,) = parts.models(bounds, 0.0, quick=True, dtypes=("bfloat16", "float16"))  # inference is in float32 only
    assert row["mode"] == "training" and row["dtype"] == "bfloat16" and row["least"] == row["flops"] / 2e9
    assert {*row["times"], *row["missing"]} == {*contenders.of("training")}
    for peer in (contenders.ALONE, "PyTorch channels_last"):
        half, single = (contenders.of("training", dtype)[peer]("small", 2, SIZE) for dtype in ("bfloat16", "float32"))
        if isinstance(half, str):
            continue  # it is not installed
        got, want = ([float(value) for value in of.result()] for of in (half, single))
        assert got != want and got == pytest.approx(want, rel=float(jnp.finfo("bfloat16").eps)), peer
        assert len({str(leaf.dtype) for leaf in jax.tree.leaves([half.run(), single.run()])}) == 1, peer


def test_programs_are_fused_and_accelerated():
    texts = {mode: contenders.of(mode)[peer]("small", 1, SIZE).keep.as_text() for mode, peer in contenders.OURS.items()}
    silu = "activation = 5 : i64"
    statistics, sums = "gconv_norm_moments_native", "gconv_norm_totals_native"
    assert silu in texts["inference"] and sums in texts["inference"] and statistics not in texts["inference"]
    assert silu not in texts["training"] and sums not in texts["training"] and statistics in texts["training"]
    alone = contenders.of("inference")[contenders.ALONE]("small", 1, SIZE).keep.as_text()
    assert "gconv_grouped_conv" in texts["training"] and "gconv_grouped_conv" not in alone


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch's compiler by PyTorch
def test_the_compiler_of_pytorch_freezes_weights():
    """It multiplies batch norms into the weights, which it does of constants only."""
    dynamo = pytest.importorskip("torch._dynamo", reason="PyTorch is not installed")
    work = contenders.of("inference")["PyTorch compiled"]("small", 2, SIZE)
    if isinstance(work, str):
        pytest.skip(work)
    assert dynamo.utils.counters["inductor"]["binary_folding_conv"] > 0
    want = steps.torch_inference("small", 2, SIZE, channels_last=False).result()
    np.testing.assert_allclose(work.result(), want, rtol=0, atol=1e-4 * np.abs(want).max())


def test_missing_engines_are_listed(monkeypatch):
    find = importlib.util.find_spec
    away = ("torch", "onnx", "onnxruntime", "openvino")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name in away else find(name, *rest))
    (row,) = parts.models({"flops": {"float32": 1e9}}, 0.0, quick=True, modes=("inference",))
    names = ("PyTorch contiguous", "PyTorch channels_last", "PyTorch compiled", "ONNX Runtime", "OpenVINO")
    assert {*row["missing"]} == {*names} and {*row["times"]} == {*contenders.INFERENCE} - {*names}
    assert "- OpenVINO: openvino is not installed (1 row)" in tables.missing([row])


def test_without_a_compiler_it_is_missing(monkeypatch):
    monkeypatch.setattr(contenders.shutil, "which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    answer = contenders.of("training")["PyTorch compiled"]("small", 2, SIZE)
    assert answer == "there is no C++ compiler, which torch.compile needs"


def test_each_mode_has_its_batches():
    both = parts.work(("mamba",), contenders.MODES, quick=False)
    assert [work[:3] for work in both] == [("inference", "mamba", 1), ("inference", "mamba", 8), ("training", "mamba", 8)]


# --- memory and profile ----------------------------------------------------------------------------------------------

MIB = 2**20


@pytest.mark.parametrize(("peer", "calls"), [("nnx.Conv", 1), ("ONNX Runtime", 1), ("PyTorch compiled", 2)])
def test_memory_is_what_the_last_call_adds(peer, calls, monkeypatch):
    """Not what was held and given back before."""
    sizes = [64 * MIB] if calls == 1 else [512 * MIB, 64 * MIB]

    def make(name, batch, size):
        np.ones(256 * MIB, np.uint8)
        return Prepared(lambda: np.ones(sizes.pop(0), np.uint8).sum(), None)

    monkeypatch.setattr(contenders, "of", lambda mode: {peer: make})
    found = memory.measure("inference", peer, "small", 1, SIZE)
    if isinstance(found, str):
        pytest.skip(found)
    assert not sizes and 63 * MIB < found["peak"] - found["before"] < 80 * MIB  # Linux counts by processor, to some pages
    assert found["preparing"] - found["before"] > (500 if calls == 2 else 250) * MIB


def test_memory_says_why_there_is_none():
    assert "no_such_peer" in memory.in_a_process("inference", "no_such_peer", "small", 1, SIZE)


PROGRAM = """
  %a.1 = (f32[1]{0}) custom-call(%x), custom_call_target="gconv_grouped_conv", backend_config={groups = 32 : i64}
  %a.2 = (f32[1]{0}) custom-call(%x), custom_call_target="gconv_grouped_conv_frozen", backend_config={groups = 1 : i64}
  %a.3 = (f32[1]{0}) custom-call(%x), custom_call_target="gconv_batch_norm", backend_config={pass = 0 : i64}
  %b.1 = f32[1]{0} convolution(%x, %y), window={size=3x3}, feature_group_count=4, metadata={op_name="jit(f)/conv"}
  %b.2 = f32[1]{0} convolution(%x, %y), window={size=3x3}, metadata={op_name="jit(f)/conv_general_dilated"}
  %c.1 = f32[1]{0} fusion(%x), kind=kOutput, metadata={op_name="jit(f)/dot_general"}
  ROOT %multiply_reduce_fusion = f32[1]{0} fusion(%x), kind=kLoop, metadata={op_name="jit(f)/mul"}
  %d.1 = f32[1]{0} fusion(%x), kind=kLoop, metadata={op_name="jit(f)/logistic"}
  %e.1 = f32[1]{0} call(%x), to_apply=%loop
"""


def test_kinds_of_instructions():
    grouped, dense, reductions, rest = profile.KINDS
    want = {"a.1": grouped, "a.2": dense, "a.3": reductions, "b.1": grouped, "b.2": dense, "c.1": dense}
    assert profile.kinds_of(PROGRAM) == want | {"multiply_reduce_fusion": reductions, "d.1": rest}


def test_kinds_of_others():
    grouped, dense, reductions, rest = profile.KINDS
    torch = profile.kind_of_torch
    assert torch("aten::mkldnn_convolution", [[8, 32, 9, 9], [32, 1, 3, 3], []]) == grouped
    assert torch("aten::mkldnn_convolution", [[8, 32, 9, 9], [16, 32, 1, 1], []]) == dense
    assert torch("aten::convolution_backward", [[8, 32, 9, 9], [8, 32, 9, 9], [32, 1, 3, 3]]) == grouped
    assert [torch(f"aten::{name}", []) for name in ("addmm", "native_batch_norm", "add_")] == [dense, reductions, rest]
    node = lambda name, *shapes: {"op_name": name, "input_type_shape": [{"float": shape} for shape in shapes]}
    assert profile.kind_of_onnx(node("Conv", [1, 32, 9, 9], [32, 1, 3, 3])) == grouped
    assert profile.kind_of_onnx(node("FusedConv", [1, 32, 9, 9], [16, 32, 1, 1])) == dense
    assert [profile.kind_of_onnx(node(name)) for name in ("Gemm", "ReduceMean", "QuickGelu")] == [dense, reductions, rest]
