"""The library of CPU kernels: its sources lie here, and here it is loaded.

    problem.h     one convolution, as the plan and the kernels see it
    plan.h, .cc   which kernel a call takes, and in which sizes; kernels execute a plan and decide nothing
    requirements.cc   what each kernel can do
    sizes.h, .cc  the sizes that each kernel works with
    cost.h, .cc   what a plan costs: the kernel that costs least is chosen
    gather/       roles y and x: every result gathers its sources. narrow.h, wide.h, rows.h, matrix.h, winograd.h; results.h and
                  finish.h are where results go and what follows them
    reduce/       role w: sums over every pixel. narrow.h, wide.h
    depthwise/    all three roles where a group is one channel: gather.h, reduce.h, and the loops that they share
    cascade/      convolutions that follow each other, row by row, and their door to XLA
    norm/         batch norm in four passes, and sums over pixels: sums.h and elementwise.h are the passes, door.cc their door
    vectors/      vectors of one instruction set, half precision, how narrow groups fill them, lists, loops over units of work
    memory.h, .cc what a thread keeps of the memory of its lists
    epilogue.h    what follows a convolution: scale, shift, residual, activation
    frozen.h      kernels that a program packs once, as the weights of a network in inference
    unit.h, .cc   the kernels of one length of vectors, with sums in float or in double or of pairs: compiled once for each
    parallel.h    loops on XLA's threads
    processor.h   which instruction sets the processor has
    in_use.h, .cc the instruction set and the kernels in use, and the last plans
    ffi.cc        the door to XLA: checks, the call, threads
    questions.cc  the door to Python: plans, and the memory of a call

Ten words are used throughout, each for one thing:

    role        which of x, w and y is the result: y the convolution, x the input gradient, w the kernel gradient
    plan        which kernel carries out a call, and the sizes that it works with
    lane        one of the numbers that a vector holds; or, as a pair, two neighbouring elements of bfloat16
    tap         one position of the window
    phase       the results along one axis that use the same taps
    tile        the results that registers hold at once: pixels times vectors
    run         neighbouring taps of a row, whose sources overlap
    block       channels or groups that lie together in the packed kernel, or in the sums of role w
    stretch     the results that a thread works on before it goes on; role w: pixels of y
    partition   stretches whose sum is a partial sum of its own in role w

It is built when gconv is installed, if there is a C++17 compiler (GCC 11 or newer, Clang 14 or newer), and loaded at the first
question about it, never at import. Whatever keeps it from running is a reason in `load`, not an error.
"""

import ctypes
import functools
import os
import re
from pathlib import Path

import jax

from gconv.native import copies

TARGET, FROZEN_TARGET = "gconv_grouped_conv", "gconv_grouped_conv_frozen"
CASCADE_TARGET, FROZEN_CASCADE_TARGET = "gconv_cascade", "gconv_cascade_frozen"
NORM_TARGET, NORM_ENTRY = "gconv_batch_norm", "gconv_norm_call"
INTERFACE = 8  # of the library's C functions and of a call's attributes
COMPILERS = "a C++17 compiler (GCC 11 or newer, Clang 14 or newer)"
HOW_TO_BUILD = f"where there is {COMPILERS}, install gconv from its sources: pip install --force-reinstall --no-deps ."


@functools.cache
def load() -> tuple[ctypes.CDLL | None, str | None]:
    """The library, or the reason why there is none."""
    # An editable install has two directories: of the sources, and of what was built.
    path, others = copies.library_of([Path(base) for base in __path__])
    if path is None:
        return None, f"it was not built: {f'{others}, or, ' if others else ''}{HOW_TO_BUILD}"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return None, f"its library does not load: {error}"
    if not hasattr(library, "gconv_interface") or library.gconv_interface() != INTERFACE:
        return None, f"it was built of the sources of another version: {HOW_TO_BUILD}"
    library.gconv_instruction_set.restype = ctypes.c_char_p
    library.gconv_ffi_version.restype = library.gconv_scratch_bytes.restype = library.gconv_plan.restype = ctypes.c_int64
    number, pointer = ctypes.c_int64, ctypes.POINTER(ctypes.c_int64)
    library.gconv_scratch_bytes.argtypes = (number, number, pointer, pointer)
    library.gconv_plan.argtypes = (number, number, pointer, pointer, number, ctypes.c_char_p, ctypes.c_char_p, number)
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
    for target, entry in ((TARGET, "gconv_call"), (CASCADE_TARGET, "gconv_cascade_call"), (NORM_TARGET, NORM_ENTRY)):
        if hasattr(library, entry):
            jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, entry)), platform="cpu")
    for target, name in ((FROZEN_TARGET, "gconv_frozen"), (FROZEN_CASCADE_TARGET, "gconv_frozen_cascade")):
        if hasattr(library, f"{name}_call"):
            entries = {"instantiate": f"{name}_state", "execute": f"{name}_call"}
            stages = {stage: jax.ffi.pycapsule(getattr(library, entry)) for stage, entry in entries.items()}
            jax.ffi.register_ffi_target(target, stages, platform="cpu")
    return True


def instruction_set() -> str | None:
    """The instruction set that the kernels use: "avx512_bf16", "avx512", "avx2" or "baseline"; None without the library.

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
