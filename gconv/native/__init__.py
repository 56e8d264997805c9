"""The library of CPU kernels: its sources lie here, and here it is loaded.

    problem.h           one grouped convolution, as the kernels see it
    parallel.h          loops on XLA's threads
    vector.h, lanes.h   vectors of one instruction set, and how narrow groups fill them
    work.h              lists, and loops over a kernel's units of work
    gather.h            roles y and x: which sources each result meets
    reduce.h            role w: partial sums
    depthwise.h         one loop nest for all three roles of depthwise: gather_depthwise.h, reduce_depthwise.h
    gather_narrow.h     roles y and x of groups narrower than a vector
    gather_wide.h       roles y and x of wider ones
    gather_rows.h       the same where neighbours meet neighbours: image networks' first layers, windows of one pixel
    gather_winograd.h   the same for windows of 3 x 3, with fewer products
    reduce_narrow.h     role w of groups narrower than a vector
    reduce_wide.h       role w of wider ones; its register tile: reduce_tile.h
    kernels.cc          the choice among them; compiled once per instruction set and length of vector
    processor.h         which instruction sets the processor has
    ffi.cc              the door to XLA: checks, threads, the choice of the instruction set

It is built when gconv is installed, if there is a C++17 compiler (GCC 11 or newer, Clang 14 or newer), and loaded at the first
question about it, never at import. Whatever keeps it from running is a reason in `load`, not an error.
"""

import ctypes
import functools
import os
import re
from pathlib import Path

import jax

TARGET = "gconv_grouped_conv"
FILES = ("libgconv.so", "libgconv.dylib")
COMPILERS = "a C++17 compiler (GCC 11 or newer, Clang 14 or newer)"
HOW_TO_BUILD = f"where there is {COMPILERS}, install gconv from its sources: pip install --force-reinstall --no-deps ."


@functools.cache
def load() -> tuple[ctypes.CDLL | None, str | None]:
    """The library, or the reason why there is none."""
    # An editable install has two directories: of the sources, and of what was built.
    found = [path for base in __path__ for name in FILES if (path := Path(base) / name).is_file()]
    if not found:
        return None, f"it was not built: {HOW_TO_BUILD}"
    try:
        library = ctypes.CDLL(str(found[0]))
    except OSError as error:
        return None, f"its library does not load: {error}"
    library.gconv_instruction_set.restype = ctypes.c_char_p
    library.gconv_ffi_version.restype = library.gconv_scratch_bytes.restype = ctypes.c_int64
    pointer = ctypes.POINTER(ctypes.c_int64)
    library.gconv_scratch_bytes.argtypes = (ctypes.c_int64, ctypes.c_int64, pointer, pointer)
    built, running = divmod(library.gconv_ffi_version(), 1000), running_ffi_version()
    # A library built for a newer interface, once registered, would keep the whole CPU backend from starting.
    if running is None or built[0] != running[0] or built[1] > running[1]:
        return None, f"it was built for XLA FFI {built}, and jaxlib has {running}: {HOW_TO_BUILD}"
    if library.gconv_instruction_set() is None:
        return None, "this processor does not have the instruction set that GCONV_NATIVE_ISA names"
    return library, None


@functools.cache
def register_kernels() -> bool:
    """Makes the CPU kernels known to XLA, for programs that this process loads rather than compiles.

    What is compiled here needs no call: it does so itself. A program that was compiled in another process and is loaded by
    `jax.experimental.serialize_executable.deserialize_and_load` does, before it is loaded. May be called any number of times.

    Returns:
      Whether there are kernels here; `gconv.implementations()` says why not.
    """
    library, _ = load()
    if library is None:
        return False
    jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(library.gconv_call), platform="cpu")
    return True


def instruction_set() -> str | None:
    """The instruction set that the kernels use: "avx512", "avx2" or "baseline"; None without the library.

    The environment variable GCONV_NATIVE_ISA, read once, names another one that the processor has.
    """
    library, _ = load()
    return None if library is None else library.gconv_instruction_set().decode()


def threads() -> int:
    """How many threads a kernel may use: those of XLA's pool, one for each processor that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def running_ffi_version() -> tuple[int, int] | None:
    """The interface of the jaxlib that runs, which only its own headers tell."""
    header = Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    try:
        text = header.read_text()
    except OSError:
        return None
    major, minor = (re.search(rf"#define XLA_FFI_API_{part} (\d+)", text) for part in ("MAJOR", "MINOR"))
    return (int(major[1]), int(minor[1])) if major and minor else None
