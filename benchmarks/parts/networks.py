"""Whole networks: their times, where these go, and memory."""

import importlib.util
from collections.abc import Iterator

import jax
from flax import nnx

from benchmarks.measuring.work import measured
from benchmarks.parts.common import Budget, wanted
from benchmarks.programs import engines, memory, networks, steps
from benchmarks.programs import profile as profiles

MODES = (("inference", 1), ("inference", 8), ("training", 8))


def models(bounds: dict, seconds: float, *, quick=False, only=("",), size=224) -> Iterator[dict]:
    """Whole networks: inference at batch 1 and 8, a training step at batch 8."""
    work = [(name, mode, batch) for name in networks.NETWORKS for mode, batch in MODES if wanted(name, only)]
    if quick:  # the smallest; tests/test_benchmark_models.py compares the others
        work, size = [("mamba", "inference", 2), ("mamba", "training", 2)], 32
    budget = Budget(seconds, len(work))
    for name, mode, batch in work:
        share = budget.share()
        prepared = {peer: make(name, batch, size) for peer, make in steps.peers(mode).items()}
        # Backward multiplies as often again for the inputs, and again for the kernels.
        flops = batch * _forward_flops(name, size) * (3 if mode == "training" else 1)
        yield {
            "part": "models",
            "case": name,
            "mode": mode,
            "batch": batch,
            "size": size,
            "flops": flops,
            "least": flops / bounds["flops"]["float32"],
            "times": measured(prepared, share, quick=quick, dtype="float32", tolerance=1e-3),
        }


# By which a user would replace JAX for inference, and what they are compared with.
OURS = ("nnx.Conv installed", "nnx.Conv fused")
IMAGES = ("mobilenet_v2", "efficientnet_b0", "resnext50_32x4d", "convnext_t", "regnetx_400mf")


def served(bounds: dict, seconds: float, *, quick=False, only=("",), size=224) -> Iterator[dict]:
    """Inference of the image networks, unchanged models with `install` and `fuse`, against engines that compile a model."""
    del bounds
    work = [(name, batch) for name in IMAGES for batch in (1, 8) if wanted(name, only)]
    if quick:  # the fastest to compile
        work, size = [("mobilenet_v2", 2)], 32
    budget = Budget(seconds, len(work))
    for name, batch in work:
        share = budget.share()
        here = {engine: make for engine, make in engines.peers().items() if engine == "ONNX Runtime" or not quick}
        makers = {peer: steps.peers("inference")[peer] for peer in OURS} | here
        prepared = {peer: make(name, batch, size) for peer, make in makers.items()}
        times = measured(prepared, share, quick=quick, dtype="float32", tolerance=1e-3)
        yield {"part": "served", "case": name, "mode": "inference", "batch": batch, "size": size, "times": times}


def _forward_flops(name: str, size: int) -> float:
    """Of one example, as XLA counts the version with nnx.Conv, in which it sees every multiplication."""
    model = nnx.eval_shape(lambda: networks.NETWORKS[name](networks.flax_layer, rngs=nnx.Rngs(0)))
    model.eval()
    graph, state = nnx.split(model)
    x = jax.ShapeDtypeStruct(networks.input_shape(name, 1, size), "float32")
    return jax.jit(lambda state, x: nnx.merge(graph, state)(x)).lower(state, x).cost_analysis()["flops"]


def profile(bounds: dict, seconds: float, *, quick=False, only=("",), size=224) -> Iterator[dict]:
    """Where the time of a training step goes."""
    del bounds, seconds
    names, batch, size = (["mamba"], 2, 32) if quick else (networks.NETWORKS, 8, size)
    for name in (name for name in names if wanted(name, only)):
        kinds = {"gconv": profiles.of_gconv(name, batch, size)}
        if importlib.util.find_spec("torch"):
            kinds["PyTorch channels_last"] = profiles.of_torch(name, batch, size)
        yield {"part": "profile", "case": name, "batch": batch, "size": size, "kinds": kinds}


def peaks(bounds: dict, seconds: float, *, quick=False, only=("",)) -> Iterator[dict]:
    """Peak memory of one training step by each implementation."""
    del bounds, seconds
    names, batch, size = (["mamba"], 1, 32) if quick else (["mobilenet_v2", "resnext50_32x4d"], 8, 224)
    for name in (name for name in names if wanted(name, only)):
        found = {peer: memory.in_a_process(peer, name, batch, size) for peer in memory.PEERS[:: 6 if quick else 1]}
        yield {
            "part": "memory",
            "case": name,
            "batch": batch,
            "size": size,
            "peaks": {peer: bytes_ for peer, bytes_ in found.items() if not isinstance(bytes_, str)},
            "missing": {peer: reason for peer, reason in found.items() if isinstance(reason, str)},
        }
