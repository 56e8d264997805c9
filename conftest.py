"""Tests and examples run on eight CPU devices, asked for before JAX starts, in strict modes, in little time and memory."""

import ctypes
import gc
import os
import tempfile
from pathlib import Path

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

import jax
import jaxlib
import pytest
from jax._src.interpreters import mlir

# As lineax and Flax test theirs. Another library that mixes ranks or types is called in `tests/conftest.py`'s `lenient`.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

collect_ignore = ["tests/typing"]  # scripts for type checkers, which are not run
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_parallel_codegen_split_count=1"
if jaxlib.__version__.startswith("0.10."):
    QUICK += " --xla_cpu_use_fusion_emitters=false"  # jaxlib 0.12 has no other emitters, and no such flag
GROWTH = 300 * 2**20  # bytes that a process may gain before its compiled programs are dropped
MEMORY = Path("/proc/self/statm")


def pytest_addoption(parser):
    parser.addoption("--optimized", action="store_true", help="XLA optimizes its own loops, as in programs of users (slower)")


def pytest_configure(config):
    """Compiling is most of the suite's time, and most of that is XLA's own loops around gconv's kernels.

    Without `--optimized`, LLVM leaves these loops as they are. gconv's kernels are compiled beforehand, and optimized.

    A program that this process has compiled before, but whose executable JAX's caches have dropped since, is loaded from a
    folder, which is this process's alone and ends with it. JAX finds it by its whole text, options and versions.
    """
    if not config.getoption("--optimized"):
        os.environ["XLA_FLAGS"] += f" {QUICK}"
    folder = tempfile.TemporaryDirectory(prefix="gconv-programs-", ignore_cleanup_errors=True)
    config.add_cleanup(folder.cleanup)
    jax.config.update("jax_compilation_cache_dir", folder.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if jax.__version_info__[:2] == (0, 10):
        mlir.make_ir_context = context


def context():
    """What jax 0.10 makes anew for each program, with every dialect of MLIR, in a sixth of the suite's time. This one has those
    of programs without Pallas; it takes a third as long. (jax 0.12 makes one for ten programs.)"""
    made = mlir.JaxIrContext()
    made.append_dialect_registry(mlir.upstream_dialects)
    made.set_thread_pool(mlir.global_thread_pool)
    made.dialects["func"]  # loads it
    for dialect in (mlir.dialects.sdy, mlir.dialects.mpmd, mlir.dialects.chlo, mlir.dialects.hlo):
        dialect.register_dialect(made)
    mlir.dialects.mhlo.register_mhlo_dialect(made)
    return made


def memory() -> int:
    """Bytes of this process, or 0 where the system does not say."""
    return int(MEMORY.read_text().split()[1]) * os.sysconf("SC_PAGESIZE") if MEMORY.exists() else 0


kept = [memory()]


def pytest_collection_finish():
    """What is there now stays: nothing of it is looked at again, and the rest less often, which saves a twentieth."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown():
    """Thousands of tests compile thousands of programs, which JAX keeps and whose memory glibc keeps: 5 GB in the end."""
    if memory() > kept[0] + GROWTH:
        jax.clear_caches()
        gc.collect()
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
        kept[0] = memory()
