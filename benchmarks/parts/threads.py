"""Some layers on a growing number of processors."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

LAYERS = ("mobilenet_v2_dw3_144x56", "convnext_t_dw7_96x56", "resnext50_g32_256x28", "mamba_conv1d", "jax_23713")
PEERS = ("gconv", "lax", "PyTorch contiguous", "PyTorch channels_last", "ONNX Runtime")


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
            command += ["--dtypes", "float32", "--peers", *PEERS, "--only", *(LAYERS if only == ("",) else only)]
            os.sched_setaffinity(0, allowed[:n])  # a child inherits it
            try:
                subprocess.run(command + ["--quick"] * quick, check=True, capture_output=True)
            finally:
                os.sched_setaffinity(0, allowed)
            for row in map(json.loads, output.read_text().splitlines()):
                yield row | {"part": "threads limits" if row["part"] == "limits" else "threads"}
