"""Tests and examples run on eight CPU devices, asked for before JAX starts, in JAX's strict modes, and in little memory."""

import ctypes
import gc
import os
from pathlib import Path

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

import jax
import pytest

# As lineax and Flax test theirs. Another library that mixes ranks or types is called in `tests/conftest.py`'s `lenient`.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

collect_ignore = ["tests/typing"]  # scripts for type checkers, which are not run
GROWTH = 500 * 2**20  # bytes that a process may gain before its compiled programs are dropped
MEMORY = Path("/proc/self/statm")


def memory() -> int:
    """Bytes of this process, or 0 where the system does not say."""
    return int(MEMORY.read_text().split()[1]) * os.sysconf("SC_PAGESIZE") if MEMORY.exists() else 0


kept = [memory()]


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown():
    """Thousands of tests compile thousands of programs, which JAX keeps and whose memory glibc keeps: 5 GB in the end."""
    if memory() > kept[0] + GROWTH:
        jax.clear_caches()
        gc.collect()
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
        kept[0] = memory()
