"""Whole networks: their times, where these go, and memory."""

from collections.abc import Iterator

import jax
from flax import nnx

from benchmarks.measuring.work import Prepared, measured
from benchmarks.parts.common import wanted
from benchmarks.programs import contenders, memory, networks
from benchmarks.programs import profile as profiles

MODES = contenders.MODES
BATCHES = {"inference": (1, 8), "training": (8,)}
MEASURED_IN = {"inference": ("float32",), "training": ("float32", "bfloat16")}


def work(only, modes, *, quick: bool) -> list[tuple[str, str, int, int]]:
    """What is run: mode, network, batch, and the side of an image or the number of steps."""
    if quick:
        return [(mode, "small", 2, 32) for mode in modes]
    names = [name for name in networks.NETWORKS if wanted(name, only)]
    return [(mode, name, batch, 224) for mode in modes for name in names for batch in BATCHES[mode]]


def models(bounds: dict, seconds: float, *, quick=False, only=("",), modes=MODES, dtypes=("float32",)) -> Iterator[dict]:
    """Whole networks: inference at batch 1 and 8, a training step at batch 8. Compiling comes on top of the seconds.

    Of `dtypes`, inference is measured in float32 and a training step in float32 and bfloat16.
    """
    chosen = [(dtype, *of) for dtype in dtypes for of in work(only, modes, quick=quick) if dtype in MEASURED_IN[of[0]]]
    for dtype, mode, name, batch, size in chosen:
        answers = {peer: make(name, batch, size) for peer, make in contenders.of(mode, dtype).items()}
        prepared = {peer: given for peer, given in answers.items() if isinstance(given, Prepared)}
        options = {"quick": quick, "dtype": dtype, "tolerance": 1e-3 if dtype == "float32" else None}
        if quick:
            times = measured(prepared, 0.0, **options)
        else:  # JAX alone is so slow that it would take most of the others' time: it has one turn, after them
            alone = {contenders.ALONE: prepared.pop(contenders.ALONE)}
            times = measured(prepared, seconds / len(chosen), **options) | measured(alone, 0.0, **options)
        # Backward multiplies as often again for the inputs, and again for the kernels.
        flops = batch * _forward_flops(name, size) * (3 if mode == "training" else 1)
        yield {
            "part": "models",
            "case": name,
            "mode": mode,
            "dtype": dtype,
            "batch": batch,
            "size": size,
            "flops": flops,
            "least": flops / bounds["flops"][dtype],
            "times": times,
            "missing": {peer: given for peer, given in answers.items() if isinstance(given, str)},
        }


def _forward_flops(name: str, size: int) -> float:
    """Of one example, as XLA counts the version with nnx.Conv, in which it sees every multiplication."""
    model = nnx.eval_shape(lambda: networks.ALL[name](networks.flax_layer, rngs=nnx.Rngs(0)))
    model.eval()
    graph, state = nnx.split(model)
    x = jax.ShapeDtypeStruct(networks.input_shape(name, 1, size), "float32")
    return jax.jit(lambda state, x: nnx.merge(graph, state)(x)).lower(state, x).cost_analysis()["flops"]


def profile(bounds: dict, seconds: float, *, quick=False, only=("",), modes=MODES) -> Iterator[dict]:
    """Where the time goes: of what gconv makes of the unchanged model, of PyTorch, and in inference of ONNX Runtime."""
    del bounds, seconds
    for mode, name, batch, size in work(only, modes, quick=quick):
        found = {peer: profiles.of(mode, peer, name, batch, size) for peer in profiles.PEERS[mode]}
        yield {
            "part": "profile",
            "case": name,
            "mode": mode,
            "batch": batch,
            "size": size,
            "kinds": {peer: kinds for peer, kinds in found.items() if not isinstance(kinds, str)},
            "missing": {peer: reason for peer, reason in found.items() if isinstance(reason, str)},
        }


def peaks(bounds: dict, seconds: float, *, quick=False, only=("",), modes=MODES) -> Iterator[dict]:
    """What a call adds to its process at its peak, by each implementation: inference and a training step at batch 8."""
    del bounds, seconds
    for mode, name, batch, size in work(only, modes, quick=quick):
        if batch == 1:
            continue
        peers = [*contenders.of(mode)][2 if quick else 0 :: 4 if quick else 1]
        found = {peer: memory.in_a_process(mode, peer, name, batch, size) for peer in peers}
        yield {
            "part": "memory",
            "case": name,
            "mode": mode,
            "batch": batch,
            "size": size,
            "peaks": {peer: bytes_ for peer, bytes_ in found.items() if not isinstance(bytes_, str)},
            "missing": {peer: reason for peer, reason in found.items() if isinstance(reason, str)},
        }
