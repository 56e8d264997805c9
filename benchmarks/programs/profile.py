"""Where the time of a training step goes, by kind of work: for the version built from gconv and for PyTorch.

Seconds are summed over threads, from JAX's and PyTorch's own profilers, so compare shares and not sums with the time of a step.
"""

import re
import tempfile
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks.programs import networks, steps

KINDS = ("grouped convolutions", "other convolutions and matrix products", "reductions", "the rest, elementwise")


def of_gconv(name: str, batch: int, size: int) -> dict[str, float]:
    """Seconds per kind of one step of the Flax version built from gconv's layers."""
    step, state = steps.training_step(name, networks.CONVS["gconv"])
    x, labels = (jnp.asarray(a) for a in steps.example(name, batch, size))
    program = jax.jit(step).lower(*state, x, labels).compile()
    jax.block_until_ready(program(*state, x, labels))
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            jax.block_until_ready(program(*state, x, labels))
        trace = jax.profiler.ProfileData.from_file(str(next(Path(directory).rglob("*.xplane.pb"))))
        kinds = _kinds(program.as_text())
        found = Counter({kind: 0.0 for kind in KINDS})
        for event in (event for plane in trace.planes for line in plane.lines for event in line.events):
            if event.name in kinds:
                found[kinds[event.name]] += event.duration_ns * 1e-9
    return dict(found)


def _kinds(program: str) -> dict[str, str]:
    """The kind of every instruction of a compiled program, by its name: what runs is named like it in the trace."""
    kinds = {}
    for line in program.splitlines():
        match = re.match(r"\s*(?:ROOT )?%?([\w.-]+) = .*? ([\w-]+)\(", line)
        if not match or match[2] in ("while", "call"):  # what those hold is counted by itself
            continue
        source = (re.findall(r'op_name="([^"]*)"', line) or [""])[0]
        if "/gconv_" in source:
            groups = re.search(r"\bgroups = (\d+)", line)  # of a native kernel; without it, one of XLA's that surround it
            kind = KINDS[1] if groups and groups[1] == "1" else KINDS[0]
        elif "dot_general" in source or "conv_general_dilated" in source or match[2] == "dot":
            kind = KINDS[1]
        else:
            kind = KINDS[2] if "reduce" in source or "reduce" in match[1] else KINDS[3]
        kinds[match[1]] = kind
    return kinds


def of_torch(name: str, batch: int, size: int) -> dict[str, float]:
    """The same of the PyTorch version, channels last."""
    import torch

    run = steps.torch_training(name, batch, size, channels_last=True).run
    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        run()
    found = Counter({kind: 0.0 for kind in KINDS})
    for event in profile.key_averages(group_by_input_shape=True):
        shapes = [shape for shape in event.input_shapes or [] if len(shape) > 2]
        if "convolution" in event.key:
            # Forward x, w; backward y, x, w: w has fewer channels than x, in a grouped one.
            *_, x, w = shapes[:3] if "backward" in event.key else shapes[:2]
            kind = KINDS[0] if x[1] != w[1] else KINDS[1]
        elif any(word in event.key for word in ("::mm", "addmm", "bmm", "linear")):
            kind = KINDS[1]
        elif any(word in event.key for word in ("norm", "sum", "mean", "pool")):
            kind = KINDS[2]
        else:
            kind = KINDS[3]
        found[kind] += event.self_cpu_time_total * 1e-6
    return dict(found)
