"""Peak resident size of one training step, each implementation in a process of its own.

The peak is the process's high-water mark at the end, libraries and parameters included; "before" is its size when the model,
its optimizer and the batch are in place and nothing has been compiled or computed. PyTorch's process holds JAX's libraries too,
for the weights, and JAX's holds the compiler: compare what the step adds.
"""

import json
import re
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

PEERS = ("gconv", "gconv native", "gconv xla", "gconv lax", "nnx.Conv", "PyTorch contiguous", "PyTorch channels_last")
STATUS = Path("/proc/self/status")


def in_a_process(peer: str, name: str, batch: int, size: int) -> dict[str, int] | str:
    """Bytes `before` the step and at the `peak`, or why there are none."""
    command = [sys.executable, "-m", "benchmarks.programs.memory", peer, name, str(batch), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    return json.loads(done.stdout.splitlines()[-1])


def resident(which: str) -> int:
    """Bytes now ("VmRSS") or at most so far ("VmHWM") of this process.

    Not `ru_maxrss`: on Linux a child begins with its parent's.
    """
    if STATUS.exists():
        return 1024 * int(re.search(rf"{which}:\s*(\d+) kB", STATUS.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(peer: str, name: str, batch: int, size: int) -> dict[str, int]:
    """In this process: build, take note, step once, take note."""
    from benchmarks.programs import networks, steps

    if peer.startswith("PyTorch"):
        prepared = steps.torch_training(name, batch, size, channels_last=peer.endswith("channels_last"))
        before = resident("VmRSS")
        run = prepared.run
    else:
        import jax
        import jax.numpy as jnp

        _, _, implementation = peer.partition("gconv ")
        conv = partial(networks.gconv_layer, implementation=implementation) if implementation else networks.CONVS[peer]
        step, state = steps.training_step(name, conv)
        x, labels = (jnp.asarray(a) for a in steps.example(name, batch, size))
        before = resident("VmRSS")
        run = lambda: jax.block_until_ready(jax.jit(step, donate_argnums=(0, 1, 2))(*state, x, labels))
    run()
    return {"before": before, "peak": resident("VmHWM")}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
