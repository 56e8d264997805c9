"""Where the time of a network's inference or training step goes, by kind of work.

Seconds of one call, summed over the operations as JAX's, PyTorch's and ONNX Runtime's own profilers tell them. Profilers cost
time themselves and operations overlap, so compare shares, and not sums with the time of a call.
"""

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from benchmarks.measuring.work import Prepared
from benchmarks.programs import contenders, engines

# The key in the rows, and what it holds.
KINDS = {
    "grouped convolutions": "grouped convolutions",
    "other convolutions and matrix products": "other convolutions and matrix products",
    "reductions": "norms, means and other reductions",
    "the rest, elementwise": "the rest, elementwise",
}
GROUPED, DENSE, REDUCTIONS, REST = KINDS
CALLS = 3


PEERS = {mode: (ours, "PyTorch channels_last") for mode, ours in contenders.OURS.items()}
PEERS["inference"] += ("ONNX Runtime",)


def of(mode: str, peer: str, name: str, batch: int, size: int) -> dict[str, float] | str:
    """Seconds by kind of one call of one of `contenders`, or why there are none."""
    work = contenders.of(mode)[peer](name, batch, size)
    if isinstance(work, str):
        return work
    if peer == "ONNX Runtime":
        return of_onnxruntime(name, batch, size)
    return of_torch(work) if peer.startswith("PyTorch") else of_flax(work)


def _total(times: Iterator[tuple[str, float]]) -> dict[str, float]:
    """Seconds by kind of one call, of pairs (kind, seconds) of CALLS calls."""
    found = Counter({kind: 0.0 for kind in KINDS})
    for kind, seconds in times:
        found[kind] += seconds / CALLS
    return dict(found)


# --- JAX -------------------------------------------------------------------------------------------------------------


def of_flax(prepared: Prepared) -> dict[str, float]:
    """Of a compiled program, by JAX's profiler."""
    kinds = kinds_of(prepared.keep.as_text())
    jax.block_until_ready(prepared.run())
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            for _ in range(CALLS):
                jax.block_until_ready(prepared.run())
        trace = jax.profiler.ProfileData.from_file(str(next(Path(directory).rglob("*.xplane.pb"))))
        events = (event for plane in trace.planes for line in plane.lines for event in line.events)
        return _total((kinds[event.name], event.duration_ns * 1e-9) for event in events if event.name in kinds)


def kinds_of(program: str) -> dict[str, str]:
    """The kind of every instruction of a compiled program, by its name: what runs is named like it in the trace."""
    kinds = {}
    for line in program.splitlines():
        match = re.match(r"\s*(?:ROOT )?%?([\w.-]+) = .*? ([\w-]+)\(", line)
        if not match or match[2] in ("while", "call"):  # what those hold is counted by itself
            continue
        name, operation = match.groups()
        target = (re.findall(r'custom_call_target="([^"]*)"', line) or [""])[0]
        source = (re.findall(r'op_name="([^"]*)"', line) or [""])[0]
        if target.startswith("gconv_grouped_conv"):
            kinds[name] = DENSE if re.search(r"\bgroups = 1 :", line) else GROUPED
        elif target == "gconv_batch_norm":
            kinds[name] = REDUCTIONS
        elif operation == "convolution":
            groups = re.search(r"feature_group_count=(\d+)", line)
            kinds[name] = GROUPED if groups and groups[1] != "1" else DENSE
        elif operation == "dot" or "dot_general" in source:
            kinds[name] = DENSE
        else:
            kinds[name] = REDUCTIONS if "reduce" in source or "reduce" in name else REST
    return kinds


# --- PyTorch and ONNX Runtime ----------------------------------------------------------------------------------------


def of_torch(prepared: Prepared) -> dict[str, float]:
    """Of eager PyTorch, by its profiler."""
    import torch

    prepared.run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        for _ in range(CALLS):
            prepared.run()
    events = profile.key_averages(group_by_input_shape=True)
    return _total((kind_of_torch(event.key, event.input_shapes or []), event.self_cpu_time_total * 1e-6) for event in events)


def kind_of_torch(name: str, shapes: Sequence[Sequence[int]]) -> str:
    if "convolution" in name:
        # Forward x, w; backward y, x, w: w has fewer channels than x, in a grouped one.
        shapes = [shape for shape in shapes if len(shape) > 2]
        *_, x, w = shapes[:3] if "backward" in name else shapes[:2]
        return GROUPED if x[1] != w[1] else DENSE
    if any(word in name for word in ("::mm", "addmm", "bmm", "linear")):
        return DENSE
    return REDUCTIONS if any(word in name for word in ("norm", "sum", "mean", "pool")) else REST


def of_onnxruntime(name: str, batch: int, size: int) -> dict[str, float]:
    """Of inference by ONNX Runtime, in a session that writes a profile."""
    with tempfile.TemporaryDirectory() as directory:
        prepared = engines.onnxruntime(name, batch, size, profile=str(Path(directory) / "profile"))
        for _ in range(1 + CALLS):
            prepared.run()
        events = json.loads(Path(prepared.keep.end_profiling()).read_text())
    calls = [event for event in events if event["name"] == "model_run"]
    begin = min(call["ts"] + call["dur"] for call in calls)  # of the first call, which does not count
    nodes = (event for event in events if event["cat"] == "Node" and event["ts"] >= begin)
    return _total((kind_of_onnx(event["args"]), event["dur"] * 1e-6) for event in nodes if "op_name" in event["args"])


def kind_of_onnx(node: dict) -> str:
    operation, shapes = node["op_name"], [shape for of in node.get("input_type_shape", []) for shape in of.values()]
    if "Conv" in operation:
        return GROUPED if shapes[0][1] != shapes[1][1] else DENSE
    if "MatMul" in operation or "Gemm" in operation:
        return DENSE
    return REDUCTIONS if any(word in operation for word in ("Norm", "Reduce", "Pool", "Softmax")) else REST
