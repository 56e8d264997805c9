"""What runs here, and whether it computes the right numbers; and an unchanged program, made fast.

python -m gconv                              the self-check; exit status 1 if it fails
python -m gconv run script.py arguments      the script with `gconv.install()`, and a report when it ends
python -m gconv run -m module arguments      the same for a module
"""

import atexit
import importlib.abc
import importlib.util
import platform
import runpy
import sys
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

import gconv
from gconv import native
from gconv.explanation import platform_here
from gconv.typing import Implementation

SECONDS = 5.0  # for the self-check


def main(arguments: list[str]) -> int:
    command, program = arguments[:1], arguments[1:]
    if not command:
        return check()
    if command == ["run"] and program and not program[0].startswith("--") and program != ["-m"]:
        run(program)
        return 0
    wanted = command[0] in ("-h", "--help")
    print(__doc__, file=sys.stdout if wanted else sys.stderr)
    return 0 if wanted else 2


def run(program: list[str]) -> None:
    """Runs `script.py arguments` or `-m module arguments` as Python does, with gconv installed; a report comes last of all."""
    report = gconv.install()
    atexit.register(lambda: print(report, file=sys.stderr))
    if program[0] == "-m":
        spec = importlib.util.find_spec(program[1])
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{program[1]}.__main__")
        if spec is None or not isinstance(spec.loader, importlib.abc.InspectLoader):
            sys.exit(f"python -m gconv run: no module named {program[1]} that can be run")
        sys.argv = [spec.origin or program[1], *program[2:]]
        _as_main(spec.loader.get_code(spec.name), {"__spec__": spec, "__package__": spec.parent, "__file__": spec.origin})
        return
    sys.argv, path = program, Path(program[0]).resolve()
    if not path.exists():
        sys.exit(f"python -m gconv run: no file {program[0]}")
    if not sys.flags.safe_path:
        sys.path[0] = str(path if path.suffix == ".zip" or path.is_dir() else path.parent)
    if path.suffix == ".zip" or path.is_dir():
        runpy.run_path(str(path), run_name="__main__")
    else:
        _as_main(compile(path.read_bytes(), str(path), "exec"), {"__file__": str(path)})


def _as_main(code, facts: dict) -> None:
    """Executes a program as the module `__main__`, which stays: threads and handlers of the program may need it later."""
    module = types.ModuleType("__main__")
    vars(module).update(facts, __builtins__=__builtins__)
    sys.modules["__main__"] = module
    exec(code, vars(module))


def check() -> int:
    where = platform_here()
    print(f"gconv {gconv.__version__}, jax {jax.__version__}, jaxlib {jaxlib.__version__}, Python {platform.python_version()}")
    print(f"this copy: {Path(gconv.__file__).parent}")
    print(f"{platform.system()} {platform.machine()}, {where}: {jax.devices()[0].device_kind}, {native.threads()} threads")
    for name, reason in gconv.implementations().items():
        kind = f" ({native.instruction_set()})" if name == "native" and native.instruction_set() else ""
        print(f"{name + kind:<16} {'not here: ' + reason if reason else 'runs'}")
    library, missing = native.load()
    if library is not None:
        print(f"the kernels: {library._name}")
    elif where == "cpu":
        print(f"NO KERNELS: {missing}", file=sys.stderr)
    failed = False
    names = [name for name, reason in gconv.implementations().items() if reason is None]
    for name in names:
        cases, error = self_check(name, SECONDS / len(names))
        print(f"self-check of {name}: {cases} random convolutions with both gradients, largest error {error:.1e}")
        failed |= not error < 1e-5
    print("FAILED" if failed else "all correct")
    return int(failed)


def self_check(name: Implementation, seconds: float) -> tuple[int, float]:
    """How many random cases ran, and the largest error of the three roles relative to the largest result."""
    rng = np.random.default_rng()
    end, cases, worst = time.perf_counter() + seconds, 0, 0.0
    while not cases or time.perf_counter() < end:
        groups, channels, filters = (int(n) for n in rng.integers(1, 6, 3))
        rank = int(rng.integers(1, 4))
        window, strides = tuple(rng.integers(1, 4, rank).tolist()), tuple(rng.integers(1, 3, rank).tolist())
        x = rng.standard_normal((2, *rng.integers(4, 8, rank), groups * channels), np.float32)
        kernel = rng.standard_normal((*window, channels, groups * filters), np.float32)

        def conv(x, kernel, strides=strides):  # with all of float32, of which a GPU takes a part by default
            return gconv.grouped_conv(x, kernel, strides=strides, padding="same", precision="highest", implementation=name)

        y, pull = jax.vjp(conv, x, kernel)
        ct = rng.standard_normal(y.shape, np.float32)
        for found, expected in zip((y, *pull(jnp.asarray(ct))), _by_loops(x, kernel, ct, strides), strict=True):
            difference = np.abs(np.asarray(found) - expected).max() / max(np.abs(expected).max(), 1e-9)
            worst = max(worst, float(difference)) if np.isfinite(difference) else float("inf")
        cases += 1
    return cases, worst


def _by_loops(x, kernel, ct, strides) -> tuple:
    """The convolution with "same" padding and its gradients with the cotangent `ct`, in float64."""
    x, kernel, ct = (np.asarray(a, np.float64) for a in (x, kernel, ct))
    rank = len(strides)
    window, spatial, output = kernel.shape[:rank], x.shape[1:-1], ct.shape[1:-1]
    low = [max((o - 1) * s + k - n, 0) // 2 for o, s, k, n in zip(output, strides, window, spatial, strict=True)]
    groups = x.shape[-1] // kernel.shape[-2]
    y, dx, dw = np.zeros_like(ct), np.zeros_like(x), np.zeros_like(kernel)

    def split(a):
        return a.reshape(*a.shape[:-1], groups, -1)

    for o in np.ndindex(*output):
        for k in np.ndindex(*window):
            i = tuple(a * s + b - lo for a, s, b, lo in zip(o, strides, k, low, strict=True))
            if all(0 <= a < n for a, n in zip(i, spatial, strict=True)):
                at, to = (slice(None), *i), (slice(None), *o)
                w = split(kernel[k])
                split(y[to])[...] += np.einsum("ngj,jgk->ngk", split(x[at]), w)
                split(dx[at])[...] += np.einsum("ngk,jgk->ngj", split(ct[to]), w)
                split(dw[k])[...] += np.einsum("ngj,ngk->jgk", split(x[at]), split(ct[to]))
    return y, dx, dw


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
