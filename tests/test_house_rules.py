"""The rules of the house: what may import what, how options are passed, what is documented, what an import may do."""

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "gconv").rglob("*.py"))
LONGEST = 350

# Each line may import the lines above it, not its own. A member of a package stands for all of them as "package.*".
ORDER = (
    ("version", "options", "naming", "mistakes", "typing", "layout", "arrays", "dtypes"),
    ("optim.factor", "native.copies", "interop.swapping"),
    ("native",),
    ("mesh", "mesh.placement", "mesh.sharding"),
    ("mesh.nnx",),
    ("geometry",),
    ("backends.convolution", "backends.problem"),
    ("backends.lax", "backends.native", "backends.xla", "backends.row"),
    ("backends.products",),
    ("backends.choice",),
    ("backends", "mesh.partition"),
    ("roles", "padding"),
    ("fusion.activations", "fusion.composition"),
    ("fusion.epilogue",),
    ("fusion.cascade",),
    ("norm.plain", "norm.kernels"),
    ("norm.primitives",),
    ("norm.function",),
    ("norm", "norm.layer"),
    ("norm.nnx", "norm.linen"),
    ("op",),
    ("causal", "initializers", "acceleration.equation", "acceleration.report"),
    ("layers.config", "acceleration.lowering"),
    ("fusion.program", "fusion.spellings", "fusion.report", "fusion.arguments"),
    ("fusion.channels", "fusion.convolutions", "fusion.patterns", "fusion.pooling"),
    ("fusion.chain", "fusion.gate"),
    ("fusion.rewrite",),
    ("fusion.fuse",),
    ("fusion",),
    ("layers.*",),
    ("layers",),
    ("grouped", "grouped.nnx", "grouped.linen", "separable", "separable.arguments"),
    ("separable.nnx", "separable.linen"),
    ("nnx", "linen", "explanation.model", "acceleration.drop_in", "acceleration.install"),
    ("acceleration.flax_layers", "acceleration.linear", "explanation.operation"),
    ("acceleration.surgery", "explanation"),
    ("acceleration",),
    ("interop.layouts",),
    ("interop.convolution", "interop.mat_files"),
    ("interop.separable",),
    ("interop.flax",),
    ("interop.*",),
    ("interop",),
)
# Beside all that: what the optimizers may import is the ground and each other, downwards.
BESIDE = (
    ("options", "naming", "typing"),
    *(("optim.factor",), ("optim.tree",), ("optim.transforms",), ("optim.solvers",), ("optim",)),
)
PUBLIC = ("gconv", "gconv.nnx", "gconv.linen", "gconv.optim", "gconv.interop", "gconv.initializers")
OPTIONAL = {"gconv.nnx": "flax", "gconv.linen": "flax", "gconv.optim": "optax"}


# --- imports only descend --------------------------------------------------------------------------------------------


def module_of(path: Path) -> str:
    """Below gconv: "op", "backends.lax", and "" for the package itself."""
    parts = path.relative_to(ROOT / "gconv").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def level(module: str, order) -> int | None:
    package = module.rpartition(".")[0]
    return next((i for i, names in enumerate(order) if module in names or package and f"{package}.*" in names), None)


def imported(path: Path) -> list[str]:
    """The modules of gconv that a file imports, anywhere in it."""
    known = {module_of(file) for file in FILES}
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                names.append(whole if whole.removeprefix("gconv.") in known else node.module)
    return [name.removeprefix("gconv").removeprefix(".") for name in names if name.split(".")[0] == "gconv"]


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_descend(path):
    module = module_of(path)
    if module in ("", "__main__"):
        return  # the package itself and its command stand above everything
    order = BESIDE if module.startswith("optim") else ORDER
    own = level(module, order)
    assert own is not None, f"gconv.{module} has no place in the order of imports: add it to ORDER in {Path(__file__).name}."
    for other in imported(path):
        other_level = level(other, order)
        assert other_level is not None, (
            f"gconv.{module} imports gconv.{other}, which it may not or which has no place in ORDER."
        )
        assert other_level < own, f"gconv.{module} imports gconv.{other}, which does not stand below it."


@pytest.mark.parametrize("module", [name for line in ORDER + BESIDE for name in line if not name.endswith("*")])
def test_the_order_lists_only_what_exists(module):
    assert module in {module_of(file) for file in FILES}


@pytest.mark.parametrize(
    ("module", "source"),
    (
        ("geometry", "from gconv.op import grouped_conv"),
        ("layers", "import gconv.nnx"),
        ("roles", "from gconv import op\n    from gconv.mesh import sharding"),
    ),
)
def test_an_ascending_import_would_be_found(module, source, tmp_path):
    path = tmp_path / "file.py"
    path.write_text(f"def f():\n    {source}\n")
    assert any(level(other, ORDER) >= level(module, ORDER) for other in imported(path))


# --- what is public --------------------------------------------------------------------------------------------------


def public() -> dict[str, object]:
    """What a namespace defines itself or re-exports as `x as x`."""
    found = {}
    for name in PUBLIC:
        if name in OPTIONAL and importlib.util.find_spec(OPTIONAL[name]) is None:
            continue
        module = importlib.import_module(name)
        source = ast.parse(Path(module.__file__).read_text())
        aliases = [alias for node in ast.walk(source) if isinstance(node, ast.ImportFrom) for alias in node.names]
        exported = {alias.name for alias in aliases if alias.asname == alias.name}
        late = {key: getattr(module, key) for key in sorted(exported)}  # gconv.optim loads most when asked
        for key, value in (vars(module) | late).items():
            own = getattr(value, "__module__", None) == name and not key.startswith("_")
            if callable(value) and (key in exported or own):
                found[f"{name}.{key}"] = value
    return found


NAMES = public()


def test_the_functions_of_the_design_are_public():
    functions = (
        "grouped_conv",
        "grouped_conv_transpose",
        "conv_general_dilated",
        "causal_conv1d",
        "accelerate",
        "implementations",
        "explain",
    )
    layers = ("nnx.GroupedConv", "linen.GroupedConv")
    assert {f"gconv.{name}" for name in (*functions, *layers)} <= {*NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_public_names_are_documented(name):
    value = NAMES[name]
    doc = value.__doc__ or ""
    assert doc.strip(), f"{name} has no docstring"
    assert not doc.startswith(f"{value.__name__}("), f"{name} has only the docstring that dataclass made"
    if inspect.isclass(value):
        methods = [m for key, m in vars(value).items() if inspect.isfunction(m) and not key.startswith("_")]
        assert all(m.__doc__ for m in methods), f"a public method of {name} has no docstring"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_modules_say_what_they_are_for(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("name", NAMES)
def test_options_are_keyword_only(name):
    """At most one optional argument may be given by position, such as the bias; the others are options."""
    if dataclasses.is_dataclass(NAMES[name]):
        return  # a value, or a Linen module, whose fields are Flax's business
    optional = optional_by_position(NAMES[name])
    if name == "gconv.conv_general_dilated":  # has exactly lax's signature, which is not ours to mend
        theirs = inspect.signature(jax.lax.conv_general_dilated).parameters
        assert list(inspect.signature(NAMES[name]).parameters)[: len(theirs)] == list(theirs)
        return
    assert len(optional) <= 1, f"{name} takes {optional} by position: a * before them makes them options"


def optional_by_position(value) -> list[str]:
    parameters = inspect.signature(value).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is not p.empty]


def test_a_positional_option_would_be_found():
    assert optional_by_position(lambda x, bias=None, strides=1, *, groups=2: None) == ["bias", "strides"]


def test_public_names_stand_in_the_reference():
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    listed = set(re.findall(r"^\.\. auto(?:function|class):: (\S+)$", pages, re.MULTILINE))
    assert {*NAMES} <= listed
    for name in listed:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), f"{name} stands in the reference and does not exist"


# --- files and imports at run time -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files_are_short(path):
    lines = len(path.read_text().splitlines())
    assert lines <= LONGEST, f"{path.relative_to(ROOT)} has {lines} lines, more than {LONGEST}"


def in_a_fresh_python(program: str):
    command = [sys.executable, "-W", "error", "-c", f"import json, sys\n{program}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_import_loads_neither_flax_nor_optax_nor_torch():
    loaded = in_a_fresh_python("import gconv; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))")
    assert "jax" in loaded
    assert not {"flax", "optax", "torch"} & {*loaded}


def test_import_of_interop_loads_no_other_library():
    loaded = in_a_fresh_python("import gconv.interop; print(json.dumps(sorted(sys.modules)))")
    others = {"flax", "torch", "keras", "haiku", "equinox", "onnx", "scipy.io", "mat73", "tensorflow"}
    assert "gconv.interop.onnx" in loaded and not others & {*loaded}


@pytest.mark.parametrize("module", ("gconv.linen", "gconv.interop"))
def test_factors_of_layers_need_no_optimizer(module):
    if module == "gconv.linen":
        pytest.importorskip("flax")
    loaded = in_a_fresh_python(f"import {module}; print(json.dumps(sorted(sys.modules)))")
    assert "gconv.optim.factor" in loaded and not {"optax", "gconv.optim.tree"} & {*loaded}


def test_import_changes_no_configuration_of_jax_and_starts_no_backend():
    values = "{name: repr(value) for name, value in jax.config.values.items()}"
    before, after, backends = in_a_fresh_python(
        f"import jax; before = {values}; import gconv; after = {values}\n"
        "from jax._src import xla_bridge; print(json.dumps([before, after, len(xla_bridge._backends)]))"
    )
    assert before and after == before
    assert backends == 0


# --- the kernels' sources --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ("gconv/native", "tests/native"))
def test_lines_of_cpp_have_at_most_110_columns(folder):
    sources = [path for kind in ("*.cc", "*.h") for path in (ROOT / folder).rglob(kind)]
    assert sources
    for path in sources:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert len(line) <= 110, f"{path.relative_to(ROOT)}:{number} has {len(line)} columns"
