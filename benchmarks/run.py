"""The parts of a run: each yields lines of results, with the facts about the machine left to the caller.

The parts share one rule of time: a part has so many seconds, and what is left of them is divided among what is left to measure.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
from flax import nnx

import gconv
from benchmarks import cases, equations, issues, limits, memory
from benchmarks.measure import interleaved
from benchmarks.models import libraries, networks, steps
from benchmarks.models import profile as profiles
from benchmarks.peers import Prepared, Problem, timed
from benchmarks.peers import of as peers_on
from benchmarks.target import CPU, Target

DTYPES = ("float32", "bfloat16")
SLOW = 10.0  # seconds: a call that takes longer is made once; a shorter one is not judged by its first, cold call
ROUNDS = 15
# What one measured value may differ from another by, as a share of the largest: float32 and half precision.
TOLERANCES = {"float32": 1e-5, "bfloat16": 2e-2}


class Clock:
    """Divides a part's seconds evenly among what is left of its work."""

    def __init__(self, seconds: float, pieces: int):
        self.end, self.pieces = time.perf_counter() + seconds, pieces

    def share(self) -> float:
        """Seconds for measuring the next piece: half of its share, for preparing takes its part."""
        left, self.pieces = self.end - time.perf_counter(), self.pieces - 1
        return max(0.0, 0.5 * left / max(self.pieces + 1, 1))


def measured(
    prepared: Mapping[str, Prepared],
    seconds: float,
    *,
    quick: bool,
    dtype: str,
    tolerance: float | None = None,
    slow: float = SLOW,
) -> dict:
    """The times of prepared work; in quick mode, results are compared first, with whatever comes first as the reference."""
    if quick:
        compare({name: work.result() for name, work in prepared.items()}, tolerance or TOLERANCES[dtype])
    rounds = 1 if quick else ROUNDS
    runs, clocks = ({name: getattr(work, of) for name, work in prepared.items()} for of in ("run", "clock"))
    times = interleaved(runs, rounds=rounds, seconds=seconds, once_over=slow, clocks=clocks)
    return {name: {"compile": prepared[name].compile, **t} for name, t in times.items()}


def compare(results: Mapping[str, object], tolerance: float) -> None:
    """An error that names who computed something else than the first."""
    (first, expected), *others = results.items()
    as_list = lambda value: value if isinstance(value, list | tuple) else [value]
    for name, value in others:
        for got, want in zip(as_list(value), as_list(expected), strict=True):
            worst = float(np.abs(got - want).max() / np.abs(want).max()) if got.shape == want.shape else float("nan")
            if not worst <= tolerance:
                raise AssertionError(
                    f"{name} {got.shape} differs from {first} {want.shape} by {worst:.1e} of the largest value"
                )


def _answer(prepare: Callable[[], Prepared | str], target: Target) -> Prepared | str:
    """What a peer answers. On a GPU a failure is one: users meet it too (jax issue 37922), and the others go on."""
    try:
        return prepare()
    except RuntimeError as error:  # JAX's and PyTorch's own are of this type
        if target.platform != "cuda":
            raise
        return f"it fails: {type(error).__name__}: {str(error).strip().splitlines()[0]}"[:200]


def _wanted(name: str, only: Sequence[str]) -> bool:
    return any(text in name for text in only)


# --- the parts -------------------------------------------------------------------------------------------------------


def layers(
    bounds: dict, seconds: float, *, quick=False, only=("",), roles="yxw", dtypes=DTYPES, peers=None, target: Target = CPU
) -> Iterator[dict]:
    """Every layer of layers.json, role and type, by every peer."""
    chosen = [case for case in cases.layers() if _wanted(case.name, only)]
    if quick:
        chosen = [cases.small(case) for case in chosen[::9]]
    elif target.batch is not None:
        chosen = [replace(case, batch=target.batch) for case in chosen]
    yield from _convolutions("layers", chosen, bounds, seconds, quick, roles, dtypes, peers, target)


def sweeps(
    bounds: dict, seconds: float, *, quick=False, only=("",), roles="yxw", dtypes=("float32",), peers=None, target: Target = CPU
) -> Iterator[dict]:
    """One size at a time grows, the others stay."""
    peers = peers or [name for name in peers_on(target.platform) if not name.startswith(("gconv ", "nnx"))]
    points = [(axis, value, case) for axis in cases.SWEEPS for value, case in cases.sweep(axis) if _wanted(axis, only)]
    if quick:
        points = [(axis, value, cases.small(case)) for axis, value, case in points[2::11]]
    chosen = [case for *_, case in points]
    where = {case.name: {"axis": axis, "value": value} for axis, value, case in points}
    for row in _convolutions("sweeps", chosen, bounds, seconds, quick, roles, dtypes, peers, target):
        yield row | where[row["case"]]


def _convolutions(part, chosen, bounds, seconds, quick, roles, dtypes, peers, target=CPU) -> Iterator[dict]:
    known = peers_on(target.platform)
    clock = Clock(seconds, len(chosen) * len(roles) * len(dtypes))
    for case in chosen:
        for dtype in dtypes:
            arrays = case.arrays(dtype)
            for role in roles:
                share = clock.share()
                problem = Problem(case, role, dtype, arrays, target)
                answers = {name: _answer(partial(known[name], problem), target) for name in peers or known}
                prepared = {name: answer for name, answer in answers.items() if isinstance(answer, Prepared)}
                moved = case.moved(jax.numpy.dtype(dtype).itemsize)
                yield {
                    "part": part,
                    "case": case.name,
                    "batch": case.batch,
                    "groups": case.geometry.groups,
                    "channels": case.geometry.channels,
                    "role": role,
                    "dtype": dtype,
                    "flops": case.flops,
                    "bytes": moved,
                    "least": limits.least_seconds(bounds, case.flops, moved, dtype),
                    "times": measured(prepared, share, quick=quick, dtype=dtype),
                    "missing": {name: answer for name, answer in answers.items() if isinstance(answer, str)},
                }


def programs(bounds: dict, seconds: float, *, quick=False, only=("",), dtypes=DTYPES, target: Target = CPU) -> Iterator[dict]:
    """The programs of users' issues."""
    del bounds
    divide = 32 if quick else None
    dtypes = dtypes[:1] if quick else dtypes
    chosen = [(dtype, make) for dtype in dtypes for make in issues.programs(dtype, divide=divide, target=target)]
    clock = Clock(seconds, len(chosen))
    for dtype, make in chosen:
        program, share = make(), clock.share()
        if not _wanted(program.name, only):
            continue
        answers = {name: _answer(make, target) for name, make in program.peers.items()}
        prepared = {name: answer for name, answer in answers.items() if isinstance(answer, Prepared)}
        times = measured(prepared, share, quick=quick, dtype=dtype)
        yield {
            "part": "issues",
            "case": program.name,
            "url": program.url,
            "scaled": program.scaled,
            "dtype": dtype,
            "times": times,
            "missing": {name: answer for name, answer in answers.items() if isinstance(answer, str)},
        }


def models(bounds: dict, seconds: float, *, quick=False, only=("",), size=224) -> Iterator[dict]:
    """Whole networks: inference at batch 1 and 8, a training step at batch 8."""
    work = [(name, mode, batch) for name in networks.NETWORKS for mode, batch in MODEL_WORK if _wanted(name, only)]
    if quick:  # the smallest; tests/test_benchmark_models.py compares the others
        work, size = [("mamba", "inference", 2), ("mamba", "training", 2)], 32
    clock = Clock(seconds, len(work))
    for name, mode, batch in work:
        share = clock.share()
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
    for name in (name for name in names if _wanted(name, only)):
        kinds = {"gconv": profiles.of_gconv(name, batch, size)}
        if importlib.util.find_spec("torch"):
            kinds["PyTorch channels_last"] = profiles.of_torch(name, batch, size)
        yield {"part": "profile", "case": name, "batch": batch, "size": size, "kinds": kinds}


def lowered(bounds: dict, seconds: float, *, quick=False, only=("",)) -> Iterator[dict]:
    """Every convolution of the networks' training steps and a sample of odd ones, as an equation: by lax, and installed."""
    del bounds
    found = [*equations.odd(12)][::4] if quick else [*equations.of_networks(), *equations.dense(), *equations.odd()]
    chosen = [case for case in found if _wanted(case.name, only)]
    clock = Clock(seconds, len(chosen))
    for case in chosen:
        share = clock.share()
        prepared, by = case.prepared()
        times = measured(prepared, min(share, 1.0), quick=quick, dtype="float32", tolerance=1e-3, slow=0.5)
        yield {"part": "equations", "case": case.name, "by": by, "times": times}


def foreign(bounds: dict, seconds: float, *, quick=False, only=("",)) -> Iterator[dict]:
    """A step of models of other libraries, unchanged: by lax, and with gconv installed."""
    del bounds
    chosen = {name: make for name, make in libraries.available().items() if _wanted(name, only)}
    chosen = dict([*chosen.items()][-1:]) if quick else chosen
    batch, size = (2, 32) if quick else (8, 96)
    clock = Clock(seconds, len(chosen))
    for name, make in chosen.items():
        share, (step, operands) = clock.share(), make(batch, size)
        fast = gconv.accelerated(step)
        prepared = {}
        for peer, of in (("lax", step), ("installed", fast)):
            run, compiling = timed(lambda of=of, operands=operands: of.lower(*operands).compile())
            run = partial(run, *operands)
            prepared[peer] = Prepared(run, lambda run=run: libraries.leaves(run()), compiling)
        times = measured(prepared, share, quick=quick, dtype="float32", tolerance=2e-3)
        yield {"part": "libraries", "case": name, "batch": batch, "size": size, "report": str(fast.report), "times": times}


def threads(bounds: dict, seconds: float, *, quick=False, only=("",)) -> Iterator[dict]:
    """Some layers again on 1, 2, 4, ... processors, each time in a process that may use so many."""
    del bounds
    if not hasattr(os, "sched_setaffinity"):
        return  # this system cannot keep a process to some of its processors
    allowed = sorted(os.sched_getaffinity(0))
    counts = [n for n in (1, 2, 4, 8, 16, 32, 64) if n < len(allowed)] + [len(allowed)]
    counts = counts[:1] if quick else counts
    for n in counts:
        with tempfile.TemporaryDirectory() as directory:
            output = Path(directory) / "lines.jsonl"
            command = [
                sys.executable,
                "-m",
                "benchmarks",
                "layers",
                "--output",
                output,
                "--seconds",
                str(seconds / len(counts)),
            ]
            command += ["--dtypes", "float32", "--peers", *THREADED_PEERS, "--only", *(THREADED if only == ("",) else only)]
            os.sched_setaffinity(0, allowed[:n])  # a child inherits it
            try:
                subprocess.run(command + ["--quick"] * quick, check=True, capture_output=True)
            finally:
                os.sched_setaffinity(0, allowed)
            for row in map(json.loads, output.read_text().splitlines()):
                yield row | {"part": "threads limits" if row["part"] == "limits" else "threads"}


def peaks(bounds: dict, seconds: float, *, quick=False, only=("",)) -> Iterator[dict]:
    """Peak memory of one training step by each implementation."""
    del bounds, seconds
    names, batch, size = (["mamba"], 1, 32) if quick else (["mobilenet_v2", "resnext50_32x4d"], 8, 224)
    for name in (name for name in names if _wanted(name, only)):
        found = {peer: memory.in_a_process(peer, name, batch, size) for peer in memory.PEERS[:: 6 if quick else 1]}
        yield {
            "part": "memory",
            "case": name,
            "batch": batch,
            "size": size,
            "peaks": {peer: bytes_ for peer, bytes_ in found.items() if not isinstance(bytes_, str)},
            "missing": {peer: reason for peer, reason in found.items() if isinstance(reason, str)},
        }


THREADED = ("mobilenet_v2_dw3_144x56", "convnext_t_dw7_96x56", "resnext50_g32_256x28", "mamba_conv1d", "jax_23713")
THREADED_PEERS = ("gconv", "lax", "PyTorch contiguous", "PyTorch channels_last", "ONNX Runtime")
MODEL_WORK = (("inference", 1), ("inference", 8), ("training", 8))
PARTS = {
    "layers": layers,
    "issues": programs,
    "models": models,
    "equations": lowered,
    "libraries": foreign,
    "profile": profile,
    "sweeps": sweeps,
    "threads": threads,
    "memory": peaks,
}
GPU_PARTS = ("layers", "issues", "sweeps")  # those that take a target
