"""What this machine could do at best, measured in the same run: how fast bytes move, and how fast it multiplies and adds.

A problem can be solved no faster, with the FLOPs of its definition, than max(its bytes / bandwidth, its FLOPs / peak). Both are
taken with as many threads as the peers use, and each is the best of several repetitions, because a limit is what can be
reached, not what usually is.

The bandwidth is that of copying (bytes read plus bytes written), for amounts of data in the caches and beyond: a case whose
operands fit a cache may run faster than memory. A kernel gradient reads much more than it writes, and machines read faster than
they copy, so it may come out somewhat above this limit; so may a window of 3 x 3, which can do with fewer FLOPs (Winograd).
"""

import importlib.util
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks.measuring import machine

SIZES = tuple(2**k * 1024 for k in range(8, 19))  # 256 KiB to 256 MiB, source and destination together


def bandwidth(total: int, *, seconds: float = 0.15) -> float:
    """Bytes read and written per second while all threads copy, each its own share of `total` bytes again and again."""
    threads = machine.cores()
    share = max(total // (2 * threads), 4096) // 4
    again = max(1, int(8e6 / (share * 4)))  # some MB per call, so that calling does not count

    def repeated(value: float) -> np.ndarray:
        """Rows over almost the same memory, each 64 bytes further: NumPy copies one after another without Python."""
        memory = np.full(share + 16 * again, value, np.float32)
        return np.lib.stride_tricks.as_strided(memory, (again, share), (64, 4))

    pairs = [(repeated(1), repeated(0)) for _ in range(threads)]
    best, repetitions, end = 0.0, 0, time.perf_counter() + seconds
    with ThreadPoolExecutor(threads) as pool:
        while repetitions < 5 or time.perf_counter() < end:
            start = time.perf_counter()
            list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs))  # memcpy, without Python's lock
            best = max(best, 2 * 4 * share * threads * again / (time.perf_counter() - start))
            repetitions += 1
    return best


def peak(dtype: str, *, size: int = 1536, seconds: float = 0.5) -> tuple[float, str]:
    """FLOPs per second of a matrix product by whatever library here does it fastest, and which did."""
    import jax

    a = np.ones((size, size), np.float32)
    x = jax.numpy.asarray(a, dtype)
    product = jax.jit(lambda x: x @ x)
    contenders = {"JAX": lambda: product(x).block_until_ready()}
    if dtype == "float32":
        contenders["NumPy"] = lambda: a @ a
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(machine.cores())
        t = torch.from_numpy(a).to(getattr(torch, dtype))
        contenders["PyTorch"] = lambda: t @ t
    found = {}
    for name, run in contenders.items():
        run()
        best, end = float("inf"), time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - start)
        found[name] = 2 * size**3 / best
    name = max(found, key=found.__getitem__)
    return found[name], name


def measured(*, quick: bool = False) -> dict:
    """`bandwidth` by amounts of data in bytes; `flops` by type, and `flops_by` whom."""
    sizes, seconds = (SIZES[:5:2], 0.02) if quick else (SIZES, 0.15)
    options = {"size": 256, "seconds": 0.02} if quick else {}
    found = {dtype: peak(dtype, **options) for dtype in ("float32", "bfloat16")}
    # What computes in bfloat16 may also do it in float32, where that is faster.
    found["bfloat16"] = max(found.values())
    return {
        "bandwidth": {str(size): bandwidth(size, seconds=seconds) for size in sizes},
        "flops": {dtype: flops for dtype, (flops, _) in found.items()},
        "flops_by": {dtype: name for dtype, (_, name) in found.items()},
    }


def least_seconds(limits: dict, flops: int, moved: int, dtype: str) -> float:
    """The time that the limits leave, as `measured` gives them, for a problem's FLOPs and bytes.

    A type whose peak is not known is bounded by its bytes alone.
    """
    sizes = [float(size) for size in limits["bandwidth"]]
    speed = np.interp(np.log(moved), np.log(sizes), [*limits["bandwidth"].values()])
    return max(moved / speed, flops / limits["flops"].get(dtype, float("inf")))
