"""The CPU kernels: what keeps them away, what they refuse, and that threads, processes and NaN do not disturb them.

Their numbers are compared with the oracle where all implementations are; `make sanitize` adds thousands of random problems.
"""

import concurrent.futures
import contextlib
import functools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from process import printed

import gconv
from gconv import backends, native, roles
from gconv.geometry import Geometry, geometry

ROOT = Path(__file__).parent.parent
MISSING = native.load()[1]
built = pytest.mark.skipif(MISSING is not None, reason=f"native: {MISSING}")
LONGEST = {"avx512_bf16": "64", "avx512": "64", "avx2": "32"}.get(native.instruction_set() or "", "16")  # bytes of its vectors


def random(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


# --- the library ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh():
    """Lets `native.load` look again, and forgets afterwards what it found."""
    native.load.cache_clear()
    yield
    native.load.cache_clear()


def test_without_the_library_the_others_run_and_the_reason_says_how_to_get_it(fresh, monkeypatch, tmp_path):
    monkeypatch.setattr(native, "__path__", [str(tmp_path)])
    reasons = gconv.implementations("cpu")
    assert "it was not built" in reasons["native"] and "pip install" in reasons["native"]
    assert reasons["xla"] is None and reasons["lax"] is None
    x, kernel = random((1, 6, 6, 4)), random((3, 3, 1, 4))
    assert gconv.grouped_conv(x, kernel).shape == (1, 4, 4, 4)
    with pytest.raises(ValueError, match="'native' cannot run role 'y': it was not built"):
        gconv.grouped_conv(x, kernel, implementation="native")


def test_a_broken_library_is_a_reason(fresh, monkeypatch, tmp_path):
    (tmp_path / "libgconv.so").write_bytes(b"not a library")
    monkeypatch.setattr(native, "__path__", [str(tmp_path)])
    assert "does not load" in gconv.implementations("cpu")["native"]


@built
@pytest.mark.parametrize("running", [(0, 0), (1, 9), None])
def test_a_library_for_a_newer_interface_is_not_registered(fresh, monkeypatch, running):
    monkeypatch.setattr(native, "running_ffi_version", lambda: running)
    assert "it was built for XLA FFI (0, " in gconv.implementations("cpu")["native"]


@built
def test_the_library_was_built_with_the_oldest_supported_headers():
    required = re.search(r'"jaxlib==(\d+\.\d+\.\d+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert tuple(map(int, required.split("."))) <= tuple(map(int, jax.__version__.split(".")[:3]))
    assert divmod(native.load()[0].gconv_ffi_version(), 1000) <= native.running_ffi_version()


@built
@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm, which lists the symbols of a library")
def test_the_library_shows_nothing_but_its_own_entries():
    """Symbols of a C++ runtime linked into it would be merged with those of other copies in the process: it then crashed."""
    command = ["nm", "-g", "--defined-only", *(["-D"] if sys.platform == "linux" else []), native.load()[0]._name]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    entries = {"call", "ffi_version", "instruction_set", "interface", "norm_call", "plan", "scratch_bytes"}
    entries |= {"frozen_call", "frozen_state", "cascade_call", "frozen_cascade_call", "frozen_cascade_state"}
    assert {line.split()[-1].removeprefix("_").removeprefix("gconv_") for line in listed.splitlines() if line} == entries


@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm, which lists the symbols of an object")
@pytest.mark.parametrize(("unit", "table"), [("unit.cc", "{}_float"), ("norm/unit.cc", "norm_{}")])
def test_instruction_sets_share_no_code(unit, table, tmp_path):
    """Without optimization every inline function stands for itself: the worst case. `make sanitize` checks what it builds."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)
    if compiler is None:
        pytest.skip("no C++ compiler")
    path = tmp_path / "unit.o"
    flags = ["-mavx2", "-mfma", "-mf16c"] if platform.machine() in ("x86_64", "AMD64") else []
    name, vector = ("avx2", 32) if flags else ("baseline", 16)
    defined = [f"-DUNIT={table.format(name)}", f"-DSET={name}", f"-DVECTOR_BYTES={vector}", "-DCOMPUTED=float"]
    sources = ROOT / "gconv" / "native"
    command = [compiler, "-std=c++17", "-O0", "-fPIC", "-w", f"-I{sources}", *flags, *defined, "-c", str(sources / unit)]
    command += ["-o", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    script = [sys.executable, str(ROOT / "tests" / "native" / "symbols.py"), str(path)]
    checked = subprocess.run(script, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_other_platforms_and_types_are_refused_with_a_reason():
    g = Geometry((4,), (3,), (1,), ((0, 0),), (1,), 2, 1, 1)
    assert "not on 'cuda'" in backends.native.why_not("y", g, jnp.float32, "cuda")
    assert "not for complex64" in backends.native.why_not("y", g, jnp.complex64, "cpu")


# --- processes -----------------------------------------------------------------------------------------------------------

PROGRAM = """
import hashlib, json, os, sys
{first}
import jax, numpy as np, gconv
from gconv import native, roles
from gconv.geometry import geometry
rng = np.random.default_rng(5)
hashes = []
for shape, kernel, options in (((8, 29, 31, 40), (3, 3, 1, 40), {{}}), ((8, 19, 30, 36), (3, 5, 4, 36), {{"strides": 2}}),
                               ((9, 17, 14, 48), (3, 3, 16, 51), {{}})):
    x, w = (rng.standard_normal(s).astype(np.float32) for s in (shape, kernel))
    y, pull = jax.vjp(lambda x, w: gconv.grouped_conv(x, w, padding="same", implementation="native", **options), x, w)
    for a in (y, *pull(y)):
        hashes.append(hashlib.sha256(np.asarray(a).tobytes()).hexdigest())
print(json.dumps([native.instruction_set(), hashes]))
"""


def run_program(first="", **environment):
    return printed(PROGRAM.format(first=first), **environment)


@built
def test_results_are_the_same_to_the_bit_from_run_to_run_and_on_one_processor():
    first = run_program()
    assert run_program() == first
    if hasattr(os, "sched_setaffinity"):
        assert run_program("os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})") == first


@built
def test_an_instruction_set_can_be_forced():
    name, hashes = run_program(GCONV_NATIVE_ISA="baseline")
    assert name == "baseline" and len(hashes) == 9


@built
@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="only Linux tells what the processor has")
def test_pairs_of_bfloat16_are_multiplied_unasked_only_by_amds_processors(monkeypatch):
    monkeypatch.delenv("GCONV_NATIVE_ISA", raising=False)
    processor = Path("/proc/cpuinfo").read_text()
    has_them = "avx512_bf16" in processor and "avx512vl" in processor
    by_itself, hashes = run_program()
    assert (by_itself == "avx512_bf16") == (has_them and "AuthenticAMD" in processor)
    if has_them:
        assert run_program(GCONV_NATIVE_ISA="avx512_bf16") == ["avx512_bf16", hashes]  # of float32


EXHAUSTED = """
import json, resource
import jax, jax.numpy as jnp, numpy as np
from gconv import native, roles
from gconv.geometry import Geometry

far = 2_000_000  # a dilation, of which each remainder has lists of its own: 300 MB, and the result is two numbers
g = Geometry((8 * far,), (2,), (1,), ((0, 0),), (far,), 1, 1, 1)
operands = {"x": jnp.arange(8 * far, dtype=jnp.float32)[None, :, None] % 2, "y": jnp.ones((1, 7 * far, 1), jnp.float32)}
how = {"geometry": g, "dtype": jnp.float32, "precision": None, "implementation": "native"}
run = jax.jit(lambda operands: roles.bind("w", operands, **how)).lower(operands).compile()
before = np.asarray(run(operands)).tolist()
size = 1024 * int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmSize")))
_, most = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (size + (16 << 20), most))
try:
    found = np.asarray(run(operands)).tolist()
except Exception as error:
    found = f"{type(error).__name__}: {error}"
resource.setrlimit(resource.RLIMIT_AS, (most, most))
print(json.dumps([found, before, np.asarray(run(operands)).tolist()]))
"""


@built
@pytest.mark.skipif(sys.platform != "linux", reason="no limit on the memory of a process")
def test_without_memory_a_call_is_an_error_and_the_process_goes_on():
    """`make sanitize` refuses each request for memory in its turn, of all kernels."""
    # What is freed goes back.
    found, before, after = printed(EXHAUSTED, MALLOC_MMAP_THRESHOLD_="65536", MALLOC_ARENA_MAX="1")
    assert "RESOURCE_EXHAUSTED: gconv: out of memory" in found
    assert after == before == [[[7_000_000.0]], [[7_000_000.0]]]


FORK = """
import multiprocessing, sys
import numpy as np, gconv
def work(_):
    x, w = np.ones((2, 40, 40, 32), np.float32), np.ones((3, 3, 1, 32), np.float32)
    return float(gconv.grouped_conv(x, w, implementation="native").sum())
if __name__ == "__main__":
    assert gconv.implementations("cpu")["native"] is None  # loaded before the fork, no backend started
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        print(pool.map(work, range(2)))
"""


@built
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_workers(method, tmp_path):
    if method not in __import__("multiprocessing").get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    script = tmp_path / "workers.py"
    script.write_text(FORK)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script, method], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [2 * 38 * 38 * 32 * 9.0] * 2


# --- the kernels -----------------------------------------------------------------------------------------------------------


@built
@pytest.mark.parametrize("role", "yxw")
@pytest.mark.parametrize(
    ("spatial", "window", "strides", "dilation", "groups", "channels", "filters"),
    (
        pytest.param((15, 13), (7, 7), (2, 2), (1, 1), 1, 3, 40, id="few channels of one group"),
        pytest.param((6, 5), (1, 1), (1, 1), (1, 1), 1, 200, 130, id="several blocks of one group"),
        pytest.param((5, 6), (3, 3), (1, 1), (1, 1), 2, 100, 70, id="wide groups"),
        pytest.param((4, 9), (3, 3), (1, 2), (1, 1), 5, 8, 8, id="groups of 8"),
        pytest.param((13, 16), (3, 3), (1, 1), (1, 1), 5, 8, 8, id="squares, groups of 8"),
        pytest.param((13, 11), (3, 3), (1, 1), (1, 1), 3, 17, 33, id="squares, odd"),
        pytest.param((24, 33), (3, 3), (1, 1), (2, 3), 1, 70, 130, id="squares, dilated, several blocks"),
        pytest.param((13, 11, 12), (3, 3, 3), (2, 1, 1), (1, 1, 1), 2, 24, 20, id="squares in planes, stride in depth"),
        pytest.param((9, 14), (2, 5), (1, 1), (1, 2), 3, 8, 8, id="groups of 8, long rows of taps"),
        pytest.param((4, 9), (3, 3), (1, 1), (1, 1), 5, 16, 16, id="groups of 16, taps that share each source"),
        pytest.param((4, 13), (2, 4), (2, 2), (2, 2), 3, 16, 12, id="groups of 16, as many strides as dilation, four taps"),
        pytest.param((4, 9), (3, 3), (1, 2), (1, 1), 3, 16, 16, id="groups of 16, stride 2"),
        pytest.param((4, 9), (3, 3), (1, 1), (1, 1), 2, 40, 40, id="groups of 40"),
        pytest.param((4, 9), (3, 3), (1, 1), (1, 1), 3, 12, 12, id="groups of 12"),
        pytest.param((4, 9), (3, 3), (1, 1), (1, 1), 2, 24, 18, id="pairs of channels"),
        pytest.param((4, 9), (2, 4), (1, 1), (1, 1), 1, 112, 50, id="pairs of channels, several blocks"),
        pytest.param((3, 5), (3, 3), (1, 1), (1, 1), 16, 32, 32, id="pixels far apart"),
        pytest.param((3, 5), (3, 3), (2, 2), (1, 1), 16, 32, 20, id="pixels far apart, stride 2"),
        pytest.param((2, 9), (1, 3), (1, 1), (1, 4), 16, 32, 32, id="pixels far apart, dilated"),
        pytest.param((2, 21), (1, 2), (1, 4), (1, 3), 16, 32, 32, id="pixels far apart, taps farther apart than columns"),
        pytest.param((1, 140), (1, 3), (1, 1), (1, 1), 16, 32, 32, id="pixels far apart, long rows"),
        pytest.param((4, 6), (1, 1), (1, 2), (1, 1), 16, 32, 32, id="pixels far apart, single tap, stride 2"),
        pytest.param((5, 3), (3, 7), (1, 1), (1, 1), 1, 3, 20, id="rows of taps, wider than the image"),
        pytest.param((3, 16), (3, 3), (1, 1), (1, 1), 1, 3, 20, id="rows of taps, rows of 16"),
        pytest.param((3, 16), (3, 3), (1, 1), (1, 1), 1, 2, 40, id="rows of taps, rows of 16, three vectors"),
        pytest.param((3, 28), (3, 3), (1, 1), (1, 1), 1, 3, 16, id="rows of taps, rows of 28"),
        pytest.param((3, 26), (2, 3), (1, 1), (1, 1), 1, 3, 32, id="rows of taps, tile that ends with the row"),
        pytest.param((2, 300), (1, 5), (1, 1), (1, 1), 1, 2, 33, id="rows of taps, long rows"),
        pytest.param((9, 61), (4, 4), (4, 4), (1, 1), 1, 3, 24, id="rows of taps, stride 4"),
        pytest.param((4, 5, 18), (3, 2, 3), (2, 1, 1), (1, 1, 1), 1, 20, 3, id="rows of taps, backwards, stride in depth"),
        pytest.param((6, 9), (3, 5), (1, 1), (1, 1), 1, 40, 3, id="rows of taps, backwards"),
        pytest.param((6, 9), (3, 5), (1, 1), (1, 1), 1, 40, 1, id="rows of taps, backwards, one filter"),
        pytest.param((8, 9), (3, 5), (2, 1), (1, 1), 3, 5, 17, id="few channels of several groups"),
        pytest.param((8, 19), (2, 3), (1, 2), (1, 2), 1, 3, 20, id="few channels, dilated"),
        pytest.param((5, 9), (3, 3), (1, 1), (1, 1), 1, 3, 8, id="few channels, few filters"),
        pytest.param((5, 9), (2, 2), (1, 1), (1, 1), 1, 12, 24, id="less than a tile of channels, row of two taps"),
        pytest.param((9, 10), (1, 1), (1, 1), (1, 1), 6, 7, 5, id="single tap"),
        pytest.param((2, 11), (1, 1), (1, 1), (1, 1), 2, 30, 50, id="single tap, rest of less than half a tile"),
        pytest.param((9, 9), (1, 1), (1, 1), (1, 1), 1, 16, 16, id="single tap, rest of more than half a tile"),
        pytest.param((1, 3), (1, 1), (1, 1), (1, 1), 1, 20, 40, id="single tap, fewer pixels than a tile"),
        pytest.param((4, 9), (1, 1), (2, 1), (1, 1), 1, 20, 40, id="single tap, stride 2"),
        pytest.param((4, 9), (1, 1), (1, 1), (1, 1), 1, 70, 3, id="single tap, few filters of many channels"),
        pytest.param((4, 9), (1, 1), (1, 1), (1, 1), 3, 4, 40, id="single tap, few channels of many filters"),
        pytest.param((9, 10), (3, 2), (1, 1), (1, 1), 6, 6, 13, id="part of a vector"),
        pytest.param((4, 9), (3, 3), (2, 1), (1, 1), 7, 4, 4, id="groups of 4"),
        pytest.param((4, 9), (3, 3), (1, 2), (1, 1), 7, 2, 2, id="groups of 2"),
        pytest.param((4, 9), (3, 3), (1, 1), (1, 1), 11, 1, 2, id="two filters per channel"),
        pytest.param((4, 9), (3, 2), (2, 1), (1, 1), 13, 4, 1, id="four channels per filter"),
        pytest.param((5, 9), (3, 3), (2, 2), (1, 1), 1, 3, 6, id="one narrow group"),
        pytest.param((5, 9), (3, 3), (1, 1), (1, 1), 3, 37, 3, id="few filters of many channels"),
        pytest.param((4, 13), (3, 3), (1, 2), (1, 1), 5, 3, 3, id="groups of 3"),
        pytest.param((4, 7), (3, 3), (1, 1), (1, 1), 9, 2, 7, id="seven filters"),
        pytest.param((3, 19), (3, 3), (1, 1), (1, 1), 45, 1, 1, id="depthwise, pairs of vectors"),
        pytest.param((6, 17), (3, 3), (1, 1), (1, 1), 37, 1, 1, id="depthwise, two rows at a time"),
        pytest.param((2, 12), (5, 2), (1, 1), (1, 1), 33, 1, 1, id="depthwise, two rows, higher than the image"),
        pytest.param((3, 5, 9), (3, 2, 3), (1, 1, 1), (2, 1, 1), 20, 1, 1, id="depthwise, two rows, in planes"),
        pytest.param((2, 31), (1, 4), (1, 2), (1, 1), 50, 1, 1, id="depthwise, stride 2"),
        pytest.param((5, 23), (3, 3), (2, 2), (1, 1), 80, 1, 1, id="depthwise, five vectors, stride 2"),
        pytest.param((3, 28), (3, 3), (1, 1), (1, 1), 64, 1, 1, id="depthwise, whole rows"),
        pytest.param((3, 17), (2, 2), (1, 1), (1, 1), 55, 1, 1, id="depthwise, part of a vector, window of 2"),
        pytest.param((3, 7), (1, 3), (1, 2), (1, 1), 40, 1, 1, id="depthwise, short rows, stride 2"),
        pytest.param((1, 45), (1, 4), (1, 3), (1, 1), 70, 1, 1, id="depthwise, stride 3"),
        pytest.param((2, 40), (2, 5), (1, 1), (1, 1), 33, 1, 1, id="depthwise, long window"),
        pytest.param((3, 70), (2, 3), (1, 1), (1, 2), 21, 1, 1, id="depthwise, dilation 2"),
        pytest.param((2, 70), (1, 7), (1, 1), (1, 3), 37, 1, 1, id="depthwise, dilation 3"),
    ),
)
def test_each_kernel_against_loops(role, spatial, window, strides, dilation, groups, channels, filters, request):
    pads = tuple((k // 2 * d, k // 2 * d) for k, d in zip(window, dilation, strict=True))
    x, kernel = random((2, *spatial, groups * channels)), random((*window, channels, groups * filters), seed=1)
    facts = {"groups": groups, "strides": strides, "pads": pads, "dilation": dilation}
    _, g = geometry(x.shape, kernel.shape, strides=strides, padding=pads, dilation=dilation)
    y = random(g.y_shape(2), seed=2)
    expected, size = (
        {
            "y": lambda x, w, y: oracle.conv(x, w, **facts),
            "x": lambda x, w, y: oracle.input_gradient(y, w, x.shape, **facts),
            "w": lambda x, w, y: oracle.kernel_gradient(x, y, w.shape, **facts),
        }[role](*operands)
        for operands in ((x, kernel, y), (abs(x), abs(kernel), abs(y)))
    )
    operands = {name: value for name, value in {"x": x, "w": kernel, "y": y}.items() if name != role}
    kernels = backends.native.kernels(role, g, "float32", 2)
    able = [name for name, reason in kernels.items() if reason is None]
    run, options = getattr(backends.native, role), {"dtype": jnp.float32, "precision": None}
    ordered = [operands[name] for name in roles.OPERANDS[role]]
    found = jax.jit(lambda *of: {name: run(*of, g, forced=name, **options) for name in ["", *able]})(*ordered)
    for name, result in found.items():
        assert np.all(np.abs(np.asarray(result) - expected) <= 1e-6 * size), name  # the sum of the products' magnitudes
    chosen = backends.native.plan(role, g, "float32", 2).kernel
    np.testing.assert_array_equal(found[""], found[chosen])
    if "squares" in request.node.callspec.id and role != "w":
        winograd = [name for name in able if name.startswith("winograd")]
        assert winograd and all(not np.array_equal(found[name], found[name.replace("winograd", "wide")]) for name in winograd)
        assert backends.native.kernels(role, g, "float32", 2, precision="highest")[winograd[0]]  # a reason against it


@built
def test_a_kernel_that_cannot_is_refused_with_its_reason():
    x, kernel = random((2, 9, 12)), random((3, 3, 8), seed=1)
    _, g = geometry(x.shape, kernel.shape, groups=4)
    options = {"dtype": jnp.float32, "precision": None}
    with pytest.raises(ValueError, match=f"'depthwise.{LONGEST}' cannot run role 'y': it takes groups of one channel"):
        backends.native.y(x, kernel, g, forced=f"depthwise.{LONGEST}", **options)
    with pytest.raises(ValueError, match="'broad.8' cannot run role 'y': no kernel of this instruction set has the name"):
        backends.native.y(x, kernel, g, forced="broad.8", **options)


@built
def test_a_plan_is_that_of_any_batch_where_it_orders_sums():
    """The same image must give the same bits alone and in any batch, so neither the kernel nor its tile may depend on it."""
    cases = ((1, 3, 16, 3), (1, 64, 64, 3), (4, 8, 8, 3), (32, 1, 1, 5), (2, 30, 7, 1), (1, 9, 2, 2))
    for groups, channels, filters, window in cases:
        _, g = geometry((1, 14, 14, groups * channels), (window, window, channels, groups * filters), padding="same")
        for role in "yx":
            plans = [backends.native.plan(role, g, "float32", batch) for batch in (1, 2, 16, 300)]
            assert len({(p.kernel, p.tile, p.vectors, p.rows) for p in plans}) == 1


@built
@pytest.mark.skipif(native.threads() < 2, reason="one processor")
def test_calls_of_ten_microseconds_are_shared_by_two_threads():
    """A second thread that has worked just before begins at once; without it, it would sleep."""
    threads = lambda channels: backends.native.plan("y", depthwise(channels), "float32", 1).threads
    depthwise = lambda channels: geometry((1, 14, 14, channels), (3, 3, 1, channels), padding="same")[1]
    assert [threads(channels) for channels in (16, 384)] == [1, 2]


@built
def test_kernels_are_packed_where_pixels_are_many_or_their_rows_crowd_a_cache():
    packs = lambda size, filters: (
        backends.native.plan("y", geometry((1, size, size, 1024), (1, 1, 1024, filters))[1], "float32", 1).packs
    )
    few_registers = platform.machine() in ("x86_64", "AMD64") and native.instruction_set() in ("avx2", "baseline")
    assert [packs(size, 1040) for size in (7, 28, 42)] == [False, few_registers, True]
    assert [packs(size, 1024) for size in (7, 28, 42)] == [False, True, True]  # rows of 4,096 bytes share few sets


@built
def test_a_kernel_whose_rows_crowd_a_cache_gives_the_bits_of_a_packed_one():
    """Of one image it is copied a few filters at a time; of eight it is packed."""
    x, kernel = random((8, 7, 7, 300)), random((1, 1, 300, 1024), seed=1)
    one, eight = (gconv.grouped_conv(images, kernel, implementation="native") for images in (x[:1], x))
    np.testing.assert_array_equal(one, eight[:1])
    expected = np.asarray(x[:1], "float64") @ np.asarray(kernel[0, 0], "float64")
    np.testing.assert_allclose(one, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@built
def test_the_environment_forces_a_kernel_where_it_can():
    """GCONV_NATIVE_KERNEL holds for what that kernel can do; the rest is planned."""
    program = """
import gconv.backends.native as n
from gconv.geometry import geometry
for channels, kernel in ((12, 1), (12, 3)):
    print(n.plan("y", geometry((1, 9, 9, 12), (3, 3, kernel, 12))[1], "float32", 1).kernel)
"""
    forced = f"narrow.{LONGEST}"
    environment = os.environ | {"GCONV_NATIVE_KERNEL": forced}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [forced, forced], done.stderr
    environment = os.environ | {"GCONV_NATIVE_KERNEL": f"depthwise.{LONGEST}"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout.split()[0] == f"depthwise.{LONGEST}" and not done.stdout.split()[1].startswith("depthwise"), done.stderr


def both_ways(precision=None):
    """Roles y and x of windows of 3 x 3 and groups of 16, which are taken in squares where the precision allows it."""
    options = {"padding": "same", "implementation": "native", "precision": precision}
    return (
        lambda x, w: gconv.grouped_conv(x, w, **options),
        lambda y, w: gconv.grouped_conv_transpose(y, w, groups=y.shape[-1] // 16, **options),
    )


@built
@pytest.mark.parametrize("way", [0, 1], ids="yx")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_reaches_what_it_reaches_by_plain_sums(way, value):
    """Infinities meet their negatives on the way, and differences of 3e38 overflow."""

    def check(x, kernel):
        found, plain = (np.array(both_ways(p)[way](x, kernel)) for p in (None, "highest"))
        largest = np.full(kernel.shape, np.max(np.abs(kernel[np.isfinite(kernel)])))
        size = np.array(both_ways("highest")[way](abs(x), largest))  # of products with the largest weight
        finite = np.isfinite(plain)
        np.testing.assert_array_equal(found[~finite], plain[~finite])
        assert not np.array_equal(found[finite], plain[finite])  # or plain sums were taken
        assert (abs(found[finite] - plain[finite]) <= 1e-6 * size[finite]).all()
        return np.count_nonzero(~finite)

    x, kernel = np.array(random((2, 13, 14, 48))), np.array(random((3, 3, 16, 48), seed=1)) / 100
    x[0, 4, 5, 7] = value
    x[1, 9, 8:11:2, 20] = value, -value
    reached = check(x, kernel)
    assert reached == 0 if value == 3e38 else 0 < reached <= (9 + 15) * 16
    if value != 3e38:
        kernel[1, 1, 3, 17] = value
        assert check(np.array(random(x.shape)), kernel) == 2 * 13 * 14


@built
@pytest.mark.parametrize("way", [0, 1], ids="yx")
def test_a_large_number_reaches_no_result_outside_its_window(way):
    x, kernel = np.array(random((1, 14, 14, 32))), random((3, 3, 16, 32), seed=1)
    without = np.array(both_ways()[way](x, kernel))
    x[0, 6, 7, 5] = 1e30
    found = np.array(both_ways()[way](x, kernel))
    found[:, 5:8, 6:9, :16] = without[:, 5:8, 6:9, :16] = 0
    np.testing.assert_array_equal(found, without)


@built
@pytest.mark.parametrize("way", [0, 1], ids="yx")
@pytest.mark.parametrize("precision", ["high", "highest", ("default", "highest"), jax.lax.DotAlgorithmPreset.F32_F32_F32])
def test_with_more_than_the_default_precision_a_result_is_the_sum_of_its_own_products(way, precision):
    """A kernel that only copies the middle then copies it exactly, whatever stands beside it."""
    x = random((2, 14, 14, 48)) * 10.0 ** jnp.asarray(np.random.default_rng(2).integers(-20, 20, (2, 14, 14, 1)), jnp.float32)
    kernel = np.zeros((3, 3, 16, 48), np.float32)
    kernel[1, 1] = np.tile(np.eye(16), 3)
    assert not np.array_equal(both_ways()[way](x, kernel), x)
    np.testing.assert_array_equal(both_ways(precision)[way](x, kernel), x)
    with jax.default_matmul_precision("highest"):
        np.testing.assert_array_equal(both_ways()[way](x, kernel), x)


@built
@pytest.mark.parametrize(
    ("role", "size", "pad", "few"),
    [("y", 6 if LONGEST == "64" else 8, 2, False), ("y", 6, 9, True), ("x", 8, 0, False), ("x", 20, -7, True)],
)
def test_results_of_which_few_taps_meet_anything_are_the_sums_of_their_own_products(role, size, pad, few):
    """Squares would round by the products of whole windows, and take longer."""
    g = Geometry((size,) * 2, (3, 3), (1, 1), ((pad, pad),) * 2, (1, 1), 3, 16, 16)
    operands = {"x": random(g.x_shape(2)), "w": random(g.kernel_shape, seed=1), "y": random(g.y_shape(2), seed=2)}
    del operands[role]
    found, plain = (
        roles.bind(role, operands, geometry=g, dtype=jnp.float32, precision=precision, implementation="native")
        for precision in (None, "highest")
    )
    assert np.array_equal(found, plain) == few


@built
@pytest.mark.parametrize(
    ("groups", "width", "dtype"),
    [(96, 1, "float32"), (24, 4, "float32"), (3, 32, "float32"), (96, 1, "bfloat16"), (96, 1, "float16")],
)
def test_results_that_go_past_the_cache_are_the_same_to_the_bit(groups, width, dtype):
    """Together x and y are more than many a processor's last cache: image by image they are not."""
    x, kernel = (a.astype(dtype) for a in (random((24, 64, 64, 96)), random((3, 3, width, 96), seed=1)))
    run = jax.jit(lambda x: gconv.grouped_conv(x, kernel, padding="same", groups=groups, implementation="native"))
    whole, grad = jax.jit(lambda x: jax.vjp(run, x))(x)[0], jax.jit(lambda x, y: jax.vjp(run, x)[1](y)[0])(x, x)
    for n in range(0, len(x), 6):
        np.testing.assert_array_equal(run(x[n : n + 1])[0], whole[n])
        one = jax.jit(lambda x, y: jax.vjp(run, x)[1](y)[0])(x[n : n + 1], x[n : n + 1])
        np.testing.assert_array_equal(one[0], grad[n])


@built
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("role", "yx")
@pytest.mark.parametrize(
    ("spatial", "window", "strides", "dilation", "groups", "channels", "filters"),
    (
        *(
            pytest.param((n, n), (3, 3), (1, 1), (1, 1), groups, width, width, id=f"{n} x {n}, {groups} x {width}")
            for n, groups, width in ((4, 2, 8), (4, 1, 64), (5, 1, 32), (6, 3, 16), (7, 1, 64), (8, 4, 8), (9, 2, 24))
        ),
        pytest.param((13, 10), (3, 3), (1, 1), (1, 1), 1, 20, 33, id="squares, odd"),
        pytest.param((8, 9), (3, 3), (1, 1), (2, 2), 2, 16, 16, id="dilated"),
        pytest.param((12, 9), (3, 3), (1, 1), (1, 3), 1, 24, 16, id="dilated along the rows"),
        pytest.param((6, 6, 5), (3, 3, 3), (1, 1, 1), (1, 1, 1), 1, 16, 16, id="three axes"),
        pytest.param((4, 5, 5), (2, 3, 3), (2, 1, 1), (1, 1, 1), 2, 12, 12, id="three axes, stride in depth"),
        pytest.param((37,), (3,), (1,), (1,), 2, 24, 24, id="one axis"),
        pytest.param((41,), (5,), (2,), (1,), 1, 3, 20, id="one axis, few channels, stride 2"),
        pytest.param((5, 9), (3, 3), (1, 1), (1, 1), 37, 1, 1, id="depthwise"),
        pytest.param((6, 17), (5, 5), (2, 2), (1, 1), 40, 1, 1, id="depthwise, stride 2"),
        pytest.param((3, 70), (2, 3), (1, 1), (1, 2), 21, 1, 1, id="depthwise, dilated"),
        pytest.param((9,), (4,), (1,), (1,), 16, 1, 1, id="depthwise, one axis"),
        pytest.param((5, 7), (3, 3), (1, 1), (1, 1), 9, 4, 4, id="groups of 4"),
        pytest.param((5, 7), (3, 3), (2, 1), (1, 1), 7, 2, 3, id="narrow"),
        pytest.param((5, 7), (3, 3), (1, 1), (1, 1), 3, 37, 3, id="few filters of many channels"),
        pytest.param((7, 7), (1, 1), (1, 1), (1, 1), 1, 40, 24, id="a matrix product"),
        pytest.param((7, 6), (1, 1), (2, 2), (1, 1), 2, 24, 40, id="single tap, stride 2"),
        pytest.param((17, 15), (3, 3), (2, 2), (1, 1), 1, 3, 16, id="image, stride 2"),
        pytest.param((3, 5), (3, 3), (2, 2), (1, 1), 2, 32, 20, id="wide, stride 2"),
    ),
)
def test_an_image_has_the_same_bits_alone_and_in_any_batch(
    role, dtype, spatial, window, strides, dilation, groups, channels, filters
):
    pads = tuple((k // 2 * d, k // 2 * d) for k, d in zip(window, dilation, strict=True))
    kernel = np.asarray(random((*window, channels, groups * filters), seed=1)).astype(jnp.dtype(dtype))
    _, g = geometry((9, *spatial, groups * channels), kernel.shape, strides=strides, padding=pads, dilation=dilation)
    name, shape = ("x", g.x_shape(9)) if role == "y" else ("y", g.y_shape(9))
    images = np.asarray(random(shape)).astype(kernel.dtype)

    def run(images):
        how = {"geometry": g, "dtype": jnp.dtype(dtype), "precision": None, "implementation": "native"}
        return np.asarray(roles.bind(role, {name: jnp.asarray(images), "w": jnp.asarray(kernel)}, **how)).astype("float32")

    whole = run(images)
    assert np.isfinite(whole).all()
    for first, count in ((0, 1), (1, 1), (2, 2), (4, 5)):
        np.testing.assert_array_equal(run(images[first : first + count]), whole[first : first + count])


@built
@pytest.mark.parametrize("way", [0, 1], ids="yx")
def test_an_image_that_is_not_finite_changes_no_bit_of_another(way):
    """A tile of squares has those of several small images, and what is not finite in a tile is summed again: no more than that,
    although many results are as near to float16's largest number as the two ways of summing are to each other."""
    x = np.array(20 + random((128, 6, 6, 48)) / 10).astype(np.float16)
    kernel = np.array(65520 / 20 / 144 + random((3, 3, 16, 48), seed=1) / 10).astype(np.float16)
    run = both_ways()[way]
    before = np.array(run(x, kernel))
    assert 0.1 < np.mean(np.isfinite(before[:, 1:-1, 1:-1])) < 0.9
    x[::2] = np.inf
    np.testing.assert_array_equal(np.array(run(x, kernel))[1::2], before[1::2])


# --- threads -------------------------------------------------------------------------------------------------------------


@built
def test_many_threads_and_nested_loops_do_not_wait_for_each_other():
    """Eight Python threads run jitted gradients under scan and vmap, and pmap over all devices, at once."""
    x, kernel = random((4, 33, 33, 24)), random((3, 3, 2, 24), seed=1)

    def loss(w, x):
        y = gconv.grouped_conv(x, w, padding="same", implementation="native")
        return jnp.sum(y * y)

    def nested(w, x):
        def body(w, _):
            each = jax.vmap(jax.grad(loss), in_axes=(None, 0))(w, x[:, None])
            return w - 1e-6 * each.sum(0), each.sum()

        return jax.lax.scan(body, w, length=3)[0]

    jitted = jax.jit(nested)
    expected = np.asarray(jitted(kernel, x))
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    mapped = jax.jit(
        jax.shard_map(
            lambda w, x: jax.lax.psum(jax.grad(loss)(jax.lax.pcast(w, "d", to="varying"), x), "d"),
            mesh=mesh,
            in_specs=(spec(), spec("d")),
            out_specs=spec(),
        )
    )
    wide = jnp.concatenate([x, x])
    mapped_expected = np.asarray(mapped(kernel, wide))
    barrier = threading.Barrier(8)

    def work(i):
        barrier.wait()
        for _ in range(5):
            if i % 4 == 3:
                np.testing.assert_array_equal(np.asarray(mapped(kernel, wide)), mapped_expected)
            else:
                np.testing.assert_array_equal(np.asarray(jitted(kernel, x)), expected)
        return i

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert sorted(f.result(timeout=240) for f in [pool.submit(work, i) for i in range(8)]) == [*range(8)]


@built
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity of threads on this system")
def test_threads_that_made_way_may_run_everywhere_again():
    x, kernel = random((4, 64, 64, 64)), random((3, 3, 1, 64), seed=1)
    run = jax.jit(lambda x: gconv.grouped_conv(x, kernel, padding="same", implementation="native"))
    jax.block_until_ready(run(x))  # the pool has all its threads now

    def processors():
        found = {}
        for thread in map(int, os.listdir("/proc/self/task")):
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                found[thread] = os.sched_getaffinity(thread)
        return found

    time.sleep(0.1)  # for a late one, which may be making way just now
    before = processors()
    for _ in range(300):
        jax.block_until_ready(run(x))
    time.sleep(0.1)
    after = processors()
    assert len({*before} & {*after}) > 1
    assert all(after[thread] == before[thread] for thread in {*before} & {*after})


# --- refusals ------------------------------------------------------------------------------------------------------------

GOOD = {
    "role": np.int64(0),
    "input": np.array([1, 1, 9]),
    "output": np.array([1, 1, 7]),
    "window": np.array([1, 1, 3]),
    "strides": np.array([1, 1, 1]),
    "low": np.array([0, 0, 0]),
    "dilation": np.array([1, 1, 1]),
    "groups": np.int64(2),
    "channels": np.int64(3),
    "filters": np.int64(4),
    "plain": False,
    "kernel": "",
    "parts": np.int64(0),
    "activation": np.int64(0),
    "slope": np.float64(0),
}
SHAPES = {"x": (2, 1, 1, 9, 6), "w": (1, 1, 3, 3, 8), "y": (2, 1, 1, 7, 8)}
HUGE = np.iinfo(np.int64).max


def call(*more, x=SHAPES["x"], w=SHAPES["w"], y=SHAPES["y"], dtype="float32", other=None, result=None, scratch=65536, **given):
    native.register_kernels()
    results = (jax.ShapeDtypeStruct(y, result or dtype), jax.ShapeDtypeStruct((scratch,), jnp.uint8))
    run = jax.ffi.ffi_call(native.TARGET, results)
    return run(jnp.ones(x, dtype), jnp.ones(w, other or dtype), *more, **(GOOD | given))[0]


@built
def test_a_well_formed_call_runs():
    np.testing.assert_array_equal(call(), np.full(SHAPES["y"], 9.0))


@built
@pytest.mark.parametrize("left_out", [1, 2])
def test_arrays_may_leave_out_axes_of_size_one(left_out):
    shapes = {name: (*s[:1], *s[1 + left_out :]) if name != "w" else s[left_out:] for name, s in SHAPES.items()}
    np.testing.assert_array_equal(call(**shapes), np.full(shapes["y"], 9.0))
    with pytest.raises((ValueError, RuntimeError), match="gconv: .*does not fit"):
        jax.block_until_ready(call(**shapes, **{name: np.array([2, 1, n]) for name, n in (("input", 9), ("output", 7))}))


@built
@pytest.mark.parametrize(
    ("wrong", "message"),
    (
        ({"x": (2, 1, 9, 6)}, "one number of axes"),
        ({"x": (3, 1, 1, 9, 6)}, "does not fit"),
        ({"x": (2, 1, 1, 8, 6)}, "does not fit"),
        ({"w": (1, 1, 3, 3, 9)}, "does not fit"),
        ({"y": (2, 1, 1, 8, 8)}, "does not fit"),
        ({"dtype": "int32"}, "float32, float64, bfloat16 or float16"),
        ({"other": "bfloat16"}, "one type"),
        ({"result": "bfloat16"}, "float32 where theirs is narrower"),
        ({"dtype": "float16", "result": "bfloat16"}, "float32 where theirs is narrower"),
        ({"scratch": 8}, "scratch is too small"),
        ({"kernel": "winograd.16"}, "no kernel of this instruction set"),
        ({"kernel": "depthwise." + LONGEST}, "groups of one channel and one filter"),
        ({"role": np.int64(3)}, "role must be"),
        ({"activation": np.int64(11)}, "no activation has this number"),
        ({"activation": np.int64(-1)}, "no activation has this number"),
        ({"parts": np.int64(16)}, "the parts must be a sum of 1, 2, 4 and 8"),
        ({"parts": np.int64(1)}, "fewer operands than parts"),
        ({"role": np.int64(1)}, "does not fit"),
        ({"strides": np.array([1, 1])}, "three entries"),
        ({"strides": np.array([1, 1, 0])}, "strides must lie"),
        ({"dilation": np.array([1, 1, -1])}, "dilations must lie"),
        ({"window": np.array([1, 0, 3])}, "window sizes must lie"),
        ({"input": np.array([1, 1, -9])}, "spatial sizes must lie"),
        ({"low": np.array([0, 0, HUGE])}, "paddings must lie"),
        ({"dilation": np.array([1, 1, HUGE])}, "dilations must lie"),
        ({"groups": np.int64(HUGE)}, "groups, channels and filters must lie"),
        ({"groups": np.int64(0)}, "groups, channels and filters must lie"),
        ({"channels": np.int64(1 << 31)}, "does not fit"),
    ),
)
def test_a_malformed_call_is_an_error(wrong, message):
    with pytest.raises((ValueError, RuntimeError), match=f"gconv: .*{message}"):
        jax.block_until_ready(call(**wrong))


@built
@pytest.mark.parametrize(
    ("parts", "operands", "message"),
    (
        (0, [jnp.ones(8)], "more operands than parts"),
        (1, [jnp.ones(7)], "shape does not fit"),
        (2, [jnp.ones((1, 8))], "shape does not fit"),
        (4, [jnp.ones(8)], "shape does not fit"),
        (1, [jnp.ones(8, "bfloat16")], "type does not fit"),
        (4, [jnp.ones(SHAPES["y"], "bfloat16")], "type does not fit"),
        (3, [jnp.ones(8)], "fewer operands than parts"),
        (8, [jnp.ones((2, 8))], "shape does not fit"),
        (8, [jnp.ones((1, 6))], "shape does not fit"),
        (8, [jnp.ones(6)], "shape does not fit"),
        (8, [jnp.ones((2, 6), "bfloat16")], "type does not fit"),
        (8, [jnp.ones((2, 6))], "no kernel .* gate"),
    ),
)
def test_a_malformed_epilogue_is_an_error(parts, operands, message):
    with pytest.raises((ValueError, RuntimeError), match=f"gconv: .*{message}"):
        jax.block_until_ready(call(*operands, parts=np.int64(parts)))


@built
@pytest.mark.parametrize(
    ("operands", "given"),
    (
        ([], {"activation": np.int64(1)}),
        ([jnp.ones(8)], {"parts": np.int64(1)}),
        ([jnp.ones((2, 6))], {"parts": np.int64(8)}),
    ),
    ids=range(3),
)
def test_a_kernel_gradient_has_no_epilogue(operands, given):
    shapes = {"w": SHAPES["y"], "y": SHAPES["w"], "role": np.int64(2)}  # the second operand, and the result
    np.testing.assert_array_equal(call(**shapes), np.full(SHAPES["w"], 14.0))
    with pytest.raises((ValueError, RuntimeError), match="gconv: role w has no epilogue"):
        jax.block_until_ready(call(*operands, **shapes, **given))


@built
@pytest.mark.parametrize("axis", ["low", "dilation", "strides"])
def test_huge_attributes_meet_no_data(axis):
    """As large as they may be, a stride, a dilation or a padding leaves whole windows outside."""
    values = np.array([0, 0, 1 << 31] if axis == "low" else [1, 1, 1 << 31])
    out = np.asarray(call(**{axis: values}))
    expected = {"low": [0.0] * 7, "dilation": [3.0] * 7, "strides": [9.0] + [0.0] * 6}[axis]
    np.testing.assert_array_equal(out[0, 0, 0, :, 0], expected)


@built
@pytest.mark.parametrize("window, groups", [(3, 4), (3, 1), (1, 4), (1, 1)])
@pytest.mark.parametrize("role", "yxw")
def test_an_empty_batch(role, window, groups):
    """Every kernel that could run is planned, and what is chosen runs."""
    pads = (window // 2, window // 2)
    channels, filters = (1, 1) if groups == 4 else (16, 24)
    g = Geometry((5, 6), (window, window), (1, 1), (pads, pads), (1, 1), groups, channels, filters)
    for kernel, reason in backends.native.kernels(role, g, "float32", 0).items():
        assert reason or backends.native.plan(role, g, "float32", 0, forced=kernel).kernel == kernel
    shapes = {"x": g.x_shape(0), "y": g.y_shape(0), "w": g.kernel_shape}
    operands = {name: jnp.ones(shapes[name]) for name in roles.OPERANDS[role]}
    result = roles.bind(role, operands, geometry=g, dtype=jnp.float32, precision=None, implementation="native")
    np.testing.assert_array_equal(result, np.zeros(shapes[role]))


# --- NaN, memory, choice ---------------------------------------------------------------------------------------------------


@built
@pytest.mark.parametrize(
    "spatial, window, groups, channels, filters",
    [
        pytest.param((4, 9), (3, 3), 1, 3, 4, id="one group of few channels"),
        pytest.param((1, 1), (1, 1), 1, 3, 4, id="images smaller than a vector"),
        pytest.param((1, 2), (1, 2), 5, 3, 2, id="small images, several groups"),
        pytest.param((3, 7), (1, 1), 1, 20, 48, id="a matrix product of few pixels"),
        pytest.param((5, 6), (3, 3), 2, 24, 32, id="wide groups of few pixels"),
    ],
)
def test_in_every_kernel_a_nan_stays_with_its_image_and_pixel(spatial, window, groups, channels, filters):
    x, kernel = np.array(random((4, *spatial, groups * channels))), random((*window, channels, groups * filters), seed=1)
    x[1, 0, -1] = x[3, 0, 0] = np.nan
    facts = geometry(x.shape, kernel.shape, groups=groups)[1]
    expected = oracle.conv(x, kernel, groups=groups, strides=(1, 1), pads=((0, 0), (0, 0)), dilation=(1, 1))
    able = [n for n, reason in backends.native.kernels("y", facts, jnp.dtype("float32"), 4).items() if reason is None]
    assert len(able) > (2 if LONGEST == "64" else 1)  # with AVX-512 each kernel has two lengths of vectors
    for name in able:
        run = jax.jit(functools.partial(backends.native.y, geometry=facts, dtype=jnp.float32, precision=None, forced=name))
        np.testing.assert_allclose(np.asarray(run(x, kernel)), expected, rtol=1e-4, atol=1e-4, err_msg=name)


@built
@pytest.mark.parametrize("dilation", [(1, 2), (2, 1)])
@pytest.mark.parametrize(
    "groups, channels, filters", [(37, 1, 1), (9, 4, 4), (5, 3, 2), (3, 12, 5), (3, 5, 16), (2, 17, 24), (1, 3, 20), (1, 20, 3)]
)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_nan_reaches_exactly_the_windows_that_hold_it(groups, channels, filters, bad, dilation):
    options = {"strides": (2, 1), "dilation": dilation, "padding": ((2, 1), (3, 0))}
    facts = {"groups": groups, "strides": (2, 1), "dilation": dilation, "pads": ((2, 1), (3, 0))}
    x, kernel = np.zeros((2, 9, 11, groups * channels)), np.ones((3, 3, channels, groups * filters))
    x[1, 4, 6, 2 % x.shape[-1]] = x[0, 0, 10, -1] = 1
    held = oracle.conv(x, kernel, **facts) > 0  # the windows that hold one of the two
    values = jnp.asarray(np.where(x > 0, bad, random(x.shape)), jnp.float32)
    run = jax.jit(lambda x, w: gconv.grouped_conv(x, w, implementation="native", groups=groups, **options))
    y, pull = jax.vjp(run, values, random(kernel.shape, seed=1))
    np.testing.assert_array_equal(~np.isfinite(y), held)
    assert bool(jnp.isfinite(pull(jnp.ones_like(y))[0]).all())  # role x does not read x
    ct = np.zeros(y.shape)
    ct[0, 1, 3, -1] = 1
    reached = oracle.input_gradient(ct, kernel, x.shape, **facts) > 0
    spoiled = jnp.asarray(np.where(ct > 0, bad, random(y.shape, seed=2)), jnp.float32)
    np.testing.assert_array_equal(~np.isfinite(pull(spoiled)[0]), reached)


@built
def test_explain_tells_the_scratch_and_it_is_no_copy_of_the_data():
    x, kernel = jax.ShapeDtypeStruct((8, 56, 56, 96), "float32"), jax.ShapeDtypeStruct((3, 3, 1, 96), "float32")
    found = gconv.explain(x, kernel, padding="same", platform="cpu")
    assert [r.implementation for r in found.roles] == ["native"] * 3
    size = 4 * 8 * 56 * 56 * 96
    assert found["y"].scratch is not None and found["y"].scratch < size / 100
    assert found["x"].scratch < size / 100
    assert 0 < found["w"].scratch < size / 20


@built
def test_little_work_is_left_to_xla():
    def chosen(*shape, window=3):
        x, kernel = jax.ShapeDtypeStruct(shape, "float32"), jax.ShapeDtypeStruct((window, window, 1, 8), "float32")
        found = gconv.explain(x, kernel, padding="same", platform="cpu")
        return {r.role: (r.implementation, r.reasons.get("native", "")) for r in found.roles}

    few = chosen(1, 7, 7, 8)
    assert all(few[role][0] == "xla" and "so few products" in few[role][1] for role in "yx")
    assert few["w"][0] == "native"
    point = chosen(1, 7, 7, 8, window=1)
    assert all(name == "xla" and "so few products" in why for name, why in point.values())
    assert {name for name, _ in chosen(64, 7, 7, 8).values()} == {"native"}
    for short in (chosen(512, 4, 1, 8), chosen(16, 6, 6, 8)):
        assert all(short[role][0] == "xla" and "numbers is short" in short[role][1] for role in "yx")
        assert short["w"][0] == "native"
    assert {name for name, _ in chosen(512, 4, 1, 8, window=5).values()} == {"native"}


@built
def test_few_products_of_one_group_are_left_to_xla_and_many_taken():
    def chosen(shape, kernel, role="y", **options):
        shapes = (jax.ShapeDtypeStruct(s, "float32") for s in (shape, kernel))
        return gconv.explain(*shapes, platform="cpu", **options)[role].implementation

    assert chosen((4, 16, 3), (3, 3, 3)) == "xla"
    assert chosen((64, 16, 16, 3), (3, 3, 3, 3)) == "xla"  # many, but of few channels
    assert chosen((8, 16, 16, 3), (3, 3, 3, 3)) == "native"  # fewer: then a call of XLA's threads costs more
    assert chosen((8, 16, 16, 1), (3, 3, 1, 4)) == "xla"  # still fewer channels
    assert chosen((64, 16, 16, 3), (3, 3, 3, 16)) == "native"  # an image network's first layer
    assert chosen((64, 16, 16, 3), (3, 3, 3, 16), padding=1, strides=2) == "native"
    assert chosen((64, 16, 16, 16), (3, 3, 16, 3), "x") == "native"
    assert chosen((64, 16, 16, 3), (3, 3, 3, 3), "x") == "xla"
    assert chosen((64, 16, 16, 8), (3, 3, 8, 8)) == "native"
    assert chosen((2, 64, 16), (1, 16, 32)) == "native"  # a matrix product
    assert chosen((64, 16, 16, 6), (1, 1, 2, 9)) == "xla"  # a single tap of few channels, of any number of groups
    assert chosen((64, 16, 16, 32), (1, 1, 2, 32)) == "native"
    # Between strides, role "x" sums a part of the taps: 5 x 5 by 2 x 2 of 4 filters are 36 terms, and 100 without strides.
    assert chosen((1, 9, 9, 8), (5, 5, 4, 8), "x", strides=2) == "xla"
    assert chosen((1, 5, 5, 8), (5, 5, 4, 8), "x") == "native"


@built
def test_programs_that_leave_this_machine_are_free_of_custom_calls():
    run = jax.jit(lambda x, w: gconv.grouped_conv(x, w))
    x, kernel = random((2, 28, 28, 16)), random((3, 3, 1, 16))
    assert "gconv_y_native" in run.lower(x, kernel).as_text(debug_info=True)
    exported = jax.export.export(run, platforms=("cpu", "cuda"))(x, kernel)
    assert native.TARGET not in exported.mlir_module()


@built
def test_half_precision_sums_in_float32():
    """4096 ones: a sum in bfloat16 would stop at 256, one in float16 at 2048."""
    for dtype in ("bfloat16", "float16"):
        _, facts = geometry((1, 4096, 8), (1, 1, 8))
        operands = {"x": jnp.ones((1, 4096, 8), dtype), "y": jnp.ones((1, 4096, 8), dtype)}
        total = roles.bind("w", operands, geometry=facts, dtype=jnp.dtype(dtype), precision=None, implementation="native")
        np.testing.assert_array_equal(np.asarray(total, np.float32), np.full((1, 1, 8), 4096.0))


def test_the_command_reports_and_checks_itself(monkeypatch, capsys):
    from gconv import __main__ as command

    monkeypatch.setattr(command, "SECONDS", 0.1)
    assert command.main([]) == 0
    printed = capsys.readouterr().out
    assert "all correct" in printed and jax.__version__ in printed
    for name in gconv.implementations():
        assert name in printed
    monkeypatch.setattr(command, "_by_loops", lambda x, kernel, ct, strides: (ct + 1, x, kernel))
    assert command.main([]) == 1
    assert "FAILED" in capsys.readouterr().out
