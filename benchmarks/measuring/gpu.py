"""The GPU as a target: how its work is timed, what it could do at best, and what a result must say about it.

The time of a call is the device's alone: what a GPU takes once its work is queued, without the host's part, which a program of
many operations hides. JAX gives no access to its stream, so its kernels' times come from its profiler. PyTorch's come from CUDA
events around a queue that is filled before the device may begin: two profilers in one process would ask for the same counters.
Events include the gap of about a microsecond between kernels, which the profiler's sum does not.
"""

import subprocess
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from importlib.metadata import distributions
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks.measuring.stopwatch import WALL
from benchmarks.measuring.target import Target, rotating

BATCH = 64
COPIED = tuple(2**k * 2**20 for k in (2, 4, 6, 8, 10))  # bytes read and written
# The largest second-level cache that a data sheet names is that of the B200: 126 MB.
LARGEST_CACHE = 128 * 2**20

# FLOPs per second without sparsity, by the name that the driver gives, from NVIDIA's data sheets
# (nvidia.com/en-us/data-center/h100, h200, a100, l40s, l4, tesla-t4). float32 is that of TF32, by which both libraries multiply
# it unless told otherwise; where there is none (T4), that of float32 itself. Half precision of the T4 is float16 only.
_H100, _A100 = {"float32": 494.5e12, "bfloat16": 989.5e12}, {"float32": 156e12, "bfloat16": 312e12}
DATA_SHEETS = {
    "H100 80GB HBM3": _H100,
    "H100 PCIe": {"float32": 378e12, "bfloat16": 756e12},
    "H200": _H100,
    "A100-SXM4-40GB": _A100,
    "A100-SXM4-80GB": _A100,
    "A100-PCIE-40GB": _A100,
    "A100 80GB PCIe": _A100,
    "L40S": {"float32": 183e12, "bfloat16": 362e12},
    "L4": {"float32": 60e12, "bfloat16": 121e12},
    "T4": {"float32": 8.1e12},
}


# --- timing ----------------------------------------------------------------------------------------------------------


class Profiled:
    """A clock for JAX's programs on a GPU: the device's busy time, from JAX's profiler."""

    most = 100

    def once(self, run) -> float:
        return WALL.once(run)

    def block(self, run, calls: int) -> list[float]:
        """One value, the mean of the calls."""
        jax.block_until_ready(run())  # what wakes the device does not count
        with tempfile.TemporaryDirectory() as directory:
            with jax.profiler.trace(directory):
                for _ in range(calls):
                    last = run()  # one after another on one stream; kept, the results would fill the memory
                jax.block_until_ready(last)
            files = [*Path(directory).rglob("*.xplane.pb")]
            data = jax.profiler.ProfileData.from_file(str(files[0]))
        return [busy_seconds(data) / calls]


class Events:
    """A clock for PyTorch on a GPU: CUDA events around a turn whose calls are queued before the device may begin.

    Otherwise small kernels would be timed by how fast Python launches them. The device is kept waiting for twice as long as
    launching took before.
    """

    most = 100
    fastest = 2.5e9  # cycles per second that no device exceeds by much: how long to wait

    def once(self, run) -> float:
        import torch

        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    def block(self, run, calls: int) -> list[float]:
        """One value, the mean of the calls."""
        import torch

        start = time.perf_counter()
        run()
        launching = time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(int(2 * launching * calls * self.fastest))  # not public; PyTorch's own benchmarks wait with it
        begin.record()
        for _ in range(calls):
            run()
        end.record()
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) * 1e-3 / calls]


def busy_seconds(data) -> float:
    """How long a GPU did anything, in a profile: the union of what its streams report, as kernels may run side by side."""
    lines = [line for plane in data.planes if plane.name.startswith("/device:GPU") for line in plane.lines]
    # Beside the streams stand lines that repeat their kernels by module and by operation.
    events = [(e.start_ns, e.start_ns + e.duration_ns) for line in lines if line.name.startswith("Stream") for e in line.events]
    if not events:
        names = ", ".join(sorted(plane.name for plane in data.planes))
        raise RuntimeError(f"the profile holds no work of a GPU; its planes are {names}")
    return union(events) * 1e-9


def union(intervals: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


# --- limits ----------------------------------------------------------------------------------------------------------


def limits(target: Target, name: str, *, quick: bool = False) -> dict:
    """As `benchmarks.measuring.limits.measured`: the bandwidth is measured, the FLOPs are the data sheet's."""
    flops = data_sheet(name)
    return {
        "bandwidth": {str(size): bandwidth(size, target) for size in (COPIED[:1] if quick else COPIED)},
        "flops": flops,
        "flops_by": {dtype: "the data sheet" for dtype in flops},
    }


def bandwidth(total: int, target: Target, *, rounds: int = 5) -> float:
    """Bytes read and written per second by the device, copying: with the sign changed, or the compiler would leave it out."""
    array = jnp.ones(total // 8, "float32")
    copies = [(jnp.copy(array),) for _ in range(target.copies(array.nbytes))]
    run = rotating(jax.jit(jnp.negative), jax.block_until_ready(copies))
    jax.block_until_ready(run())
    return total / min(min(target.jax.block(run, 20)) for _ in range(rounds))


def data_sheet(name: str) -> dict[str, float]:
    """The peaks of a device by the driver's name for it; none where it is not known."""
    return DATA_SHEETS.get(name.removeprefix("NVIDIA ").removeprefix("Tesla "), {})


# --- the device ------------------------------------------------------------------------------------------------------


def why_not() -> str | None:
    """Why nothing can be measured on a GPU here, or None."""
    try:
        return None if jax.devices("cuda") else "JAX finds no CUDA device"
    except RuntimeError:
        return "JAX finds no CUDA device here; its CUDA build comes with `pip install jax[cuda12]`, and a driver must be loaded"


def target() -> Target:
    """The first CUDA device."""
    device = jax.devices("cuda")[0]
    torch_clock = Events() if _has_torch() else WALL
    memory = partial(_memory, device)
    return Target("cuda", cache(), BATCH, jax=Profiled(), torch=torch_clock, memory=memory)


def cache() -> int:
    """Bytes of the second-level cache, as PyTorch tells; without it, what no device has more of."""
    if not _has_torch():
        return LARGEST_CACHE
    import torch

    return getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0) or LARGEST_CACHE


def facts() -> dict:
    """What a result says beside `benchmarks.measuring.machine.facts`: device, driver, and the versions that compute there."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
        driver = lines[0].rsplit(",", 1)[1].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = "unknown"
    return {"gpu": jax.devices("cuda")[0].device_kind, "driver": driver, "cache": cache(), "versions": versions()}


def versions() -> dict[str, str]:
    """Of the packages that bring CUDA and cuDNN, as far as they are installed."""
    wanted = ("jax-cuda", "nvidia-cudnn", "nvidia-cuda-runtime", "triton")
    found = {d.metadata["Name"]: d.version for d in distributions() if (d.metadata["Name"] or "").startswith(wanted)}
    return dict(sorted(found.items()))


def _memory(device) -> int:
    return (device.memory_stats() or {}).get("bytes_limit") or 8 * 2**30


def _has_torch() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()
