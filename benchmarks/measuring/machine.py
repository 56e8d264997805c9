"""What a result must say about where it comes from: date, commit, versions, processor, threads."""

import ctypes
import datetime
import importlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

LIBRARIES = ("gconv", "jax", "jaxlib", "flax", "numpy", "torch", "onnxruntime", "openvino")


def cores() -> int:
    """How many processors this process may use: every peer is given as many threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def begin() -> dict:
    """Makes this process measure as all do, and gives what every line of results carries.

    Each call is waited for, so JAX has nothing to gain from handing it to another thread, and loses some 0.1 ms.
    """
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)
    return facts() | {"memory_kept": keep_memory(), "async_dispatch": False}


def keep_memory() -> bool:
    """Makes the C library keep freed memory for the next call instead of giving it back to the system; whether it could.

    Results of some MB are otherwise new pages in every call, or not, depending on what ran before in the process: the same
    call then takes one time or several, and which peer is hit is chance. So all are measured as in a long running process.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # no GNU C library
        return False
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # of malloc.h; other arenas are too small for large results
    return all(mallopt(name, value) for name, value in ((trim_threshold, -1), (mmap_max, 0), (arena_max, 1)))


def openvino():
    """OpenVINO's module without its telemetry, which forks this process to send usage data while others are measured."""
    sys.modules.setdefault("openvino_telemetry", None)
    return importlib.import_module("openvino")


def processor() -> str:
    """The processor's name and its widest vectors, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in lines.items()}
    flags = facts.get("flags", "").split()
    widest = next((name for name in ("avx512f", "avx2", "avx") if name in flags), platform.machine())
    return f"{facts.get('model name', platform.machine())} ({widest})"


def facts() -> dict:
    """What every line of results carries."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ"),
        "commit": commit,
        "processor": processor(),
        "threads": cores(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in LIBRARIES},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
