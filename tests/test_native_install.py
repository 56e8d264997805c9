"""How the kernels come to a machine: what the build says without a compiler, and which of two copies' libraries is loaded."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from gconv import native
from gconv.native import copies

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "gconv" / "native"
LIBRARY, MISSING = native.load()
built = pytest.mark.skipif(MISSING is not None, reason=f"native: {MISSING}")


# --- without a compiler --------------------------------------------------------------------------------------------------


@pytest.fixture
def configure(tmp_path):
    """`configure(CXX, *options)` runs cmake's first step: whether it succeeded, and what it said."""
    beside = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    cmake, ninja = (shutil.which(name, path=beside) for name in ("cmake", "ninja"))
    if not (cmake and ninja):
        pytest.skip("no cmake or no ninja")

    def run(compiler: str, *options: str) -> str:
        command = [cmake, "-S", str(ROOT), "-B", str(tmp_path), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        command += [f"-DPython_EXECUTABLE={sys.executable}", *options]
        environment = os.environ | {"CXX": compiler}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, start_new_session=True)
        assert done.returncode == 0, done.stderr
        assert "gconv_native" not in (tmp_path / "build.ninja").read_text(), "the kernels would be built"
        return " ".join(f"{done.stdout} {done.stderr}".split())  # cmake breaks its lines

    return run


def told_the_price(said: str) -> bool:
    return "14 times as fast as JAX's, where the kernels make it 64 times" in said and native.COMPILERS in said


def test_without_a_compiler_the_install_goes_on_and_says_what_that_costs(configure):
    said = configure("/no/compiler")
    assert told_the_price(said) and said.count("installed without its CPU kernels") == 1, said


def test_a_compiler_that_is_too_old_is_told_which_ones_will_do(configure):
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    old = "-U__GNUC__ -D__GNUC__=10 -U__clang_major__ -D__clang_major__=13 -w"  # what the compiler says when cmake asks
    said = configure(compiler, f"-DCMAKE_CXX_FLAGS={old}")
    assert re.search(r"the compiler found is \w+ 1[03]\.", said) and told_the_price(said), said


def test_the_kernels_can_be_left_out(configure):
    assert "GCONV_NATIVE=OFF" in configure("/no/compiler", "-DGCONV_NATIVE=OFF")


def test_the_price_is_that_of_the_rows():
    """The numbers that the build and docs/install.md name, from the committed rows."""
    from statistics import geometric_mean

    import jax.numpy as jnp

    from benchmarks.cases.layers import layers
    from benchmarks.report import load
    from gconv import backends

    name = "benchmarks/results/2026-11-25-2-threads.jsonl"
    cases = {case.name: case for case in layers()}
    ratios: dict[str, list] = {role: [] for role in "yxw"}
    for row in load([ROOT / name]):
        if row["part"] == "layers" and row["dtype"] == "float32":
            case, times = cases[row["case"]], {peer: found["median"] for peer, found in row["times"].items()}
            operands = (row["role"], case.geometry, jnp.dtype("float32"), "cpu", case.batch)
            without = backends.choose(*operands, portable="there are no kernels")
            ratios[row["role"]].append((times["lax"] / times["gconv"], times["lax"] / times[f"gconv {without}"]))
    found = {role: [round(geometric_mean(side)) for side in zip(*pairs, strict=True)] for role, pairs in ratios.items()}
    assert all(len(pairs) == 26 for pairs in ratios.values())
    assert found == {"y": [64, 14], "x": [79, 18], "w": [225, 30]}
    page, build = ((ROOT / path).read_text() for path in ("docs/install.md", "CMakeLists.txt"))
    for row in ("| convolution | 64 | 14 |", "| input gradient | 79 | 18 |", "| kernel gradient | 225 | 30 |"):
        assert row in page
    assert name in build and "30 times instead of 225" in build


# --- two copies -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def clone(tmp_path):
    """A copy of the sources without a library, as a fresh clone is."""
    left_out = shutil.ignore_patterns("*.so", "*.dylib", "__pycache__")
    shutil.copytree(ROOT / "gconv", tmp_path / "clone" / "gconv", ignore=left_out)
    return tmp_path / "clone"


@pytest.fixture
def site(tmp_path):
    """An installed copy beside it, whose library was made of these sources."""
    folder = tmp_path / "site" / "gconv" / "native"
    folder.mkdir(parents=True)
    (folder / "libgconv.so").write_bytes(b"a library")
    files = [path for path in SOURCES.rglob("*") if path.suffix in (".cc", ".h")]
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(SOURCES).as_posix()}" for path in files]
    (folder / copies.SUMS).write_text("\n".join(lines) + "\n")
    return tmp_path / "site"


def found(clone, *paths):
    return copies.library_of([clone / "gconv" / "native"], [str(clone), *map(str, paths)])


def test_a_clone_takes_the_library_of_its_own_sources(clone, site):
    assert found(clone, site) == (site / "gconv" / "native" / "libgconv.so", "")
    assert found(clone) == (None, "")


@pytest.mark.parametrize("change", ("differs", "is not here", "has no"))
def test_a_library_of_other_sources_is_left_and_both_copies_are_named(clone, site, change):
    header = clone / "gconv" / "native" / "problem.h"
    if change == "differs":
        header.write_text(header.read_text() + "// a change\n")
    elif change == "is not here":
        header.unlink()
    else:
        (site / "gconv" / "native" / copies.SUMS).unlink()
    library, sentence = found(clone, site)
    assert library is None
    assert str(clone / "gconv") in sentence and str(site / "gconv") in sentence and change in sentence


def test_a_new_source_is_a_difference(clone, site):
    (clone / "gconv" / "native" / "gather" / "new.h").write_text("")
    assert "gather/new.h differs" in found(clone, site)[1]


def test_its_own_library_comes_first(clone, site):
    own = clone / "gconv" / "native" / "libgconv.so"
    own.write_bytes(b"its own")
    assert found(clone, site) == (own, "")


def in_clone(clone, site, *arguments):
    """Python in the clone, with the installed copy behind it on the path; editable installs of this machine stay out."""
    packages = [str(Path(jax.__file__).parent.parent)]
    start = f"import sys; sys.path[:0] = {[str(clone), str(site)]}; sys.path += {packages}; import runpy; sys.argv = "
    program = f"{start}{[*arguments]}; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
    return subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, cwd=clone)


@built
def test_kernels_run_from_a_clone_beside_an_install_and_python_m_gconv_says_which_copy(clone, site):
    folder = site / "gconv" / "native"
    shutil.copy(LIBRARY._name, folder / "libgconv.so")
    done = in_clone(clone, site, "gconv")
    assert done.returncode == 0, done.stderr
    assert "self-check of native" in done.stdout and str(clone / "gconv") in done.stdout
    assert str(folder / "libgconv.so") in done.stdout and not done.stderr


def test_python_m_gconv_and_the_benchmarks_say_aloud_that_no_kernels_run(clone, site):
    for path in (clone / "gconv" / "native").glob("plan.*"):
        path.write_text("// another version\n")
    left_out = shutil.ignore_patterns("results", "report", "__pycache__")
    shutil.copytree(ROOT / "benchmarks", clone / "benchmarks", ignore=left_out)
    checked, measured = in_clone(clone, site, "gconv"), in_clone(clone, site, "benchmarks", "--help")
    assert checked.returncode == 0, checked.stderr
    for done in (checked, measured):
        assert "NO KERNELS" in done.stderr and f"the copy of gconv in {clone / 'gconv'}" in done.stderr, done.stderr
