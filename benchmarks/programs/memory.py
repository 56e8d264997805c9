"""What one call of a network, inference or a training step, adds to its process at its peak. Each is in a process of its own.

    before      the process with its program compiled or its session open, weights, optimizer and batch in place
    peak        the most that the process holds while one call runs
    preparing   the most that it ever held before that call

Before it is noted, freed memory is given back to the system, and the system's record of the peak begins anew. JAX and PyTorch
keep nothing between calls but their parameters. PyTorch's first call compiles, or fills caches, and makes the momentum: its
second call counts. ONNX Runtime and OpenVINO keep the memory of a call for the next: their first call counts.
"""

import ctypes
import gc
import json
import re
import subprocess
import sys
from pathlib import Path

PROC = Path("/proc/self")
RESET_PEAK = "5"  # what `clear_refs` takes, by the manual of Linux's proc


def in_a_process(mode: str, peer: str, name: str, batch: int, size: int) -> dict[str, int] | str:
    """Bytes `before` the call, at its `peak` and when `preparing` it, or why there are none."""
    command = [sys.executable, "-m", "benchmarks.programs.memory", mode, peer, name, str(batch), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    return json.loads(done.stdout.splitlines()[-1])


def resident(which: str) -> int:
    """Bytes now ("VmRSS"), or at most since the record began ("VmHWM"), of this process."""
    return 1024 * int(re.search(rf"{which}:\s*(\d+) kB", (PROC / "status").read_text())[1])


def settle() -> None:
    """Gives freed memory back to the system, and lets the record of the peak begin anew."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    (PROC / "clear_refs").write_text(RESET_PEAK)


def measure(mode: str, peer: str, name: str, batch: int, size: int) -> dict[str, int] | str:
    """In this process: prepare, take note, call once, take note."""
    import jax

    from benchmarks.programs import contenders

    if not (PROC / "clear_refs").exists():
        return "the peak of a call is known on Linux only"
    prepared = contenders.of(mode)[peer](name, batch, size)
    if isinstance(prepared, str):
        return prepared
    if peer.startswith("PyTorch"):
        prepared.run()
    preparing = resident("VmHWM")
    settle()
    before = resident("VmRSS")
    jax.block_until_ready(prepared.run())
    return {"before": before, "peak": resident("VmHWM"), "preparing": preparing}


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:4], *map(int, sys.argv[4:]))))
