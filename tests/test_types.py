"""What type checkers say of users' programs, and which names a user sees."""

import json
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from flax import nnx

import gconv
import gconv.interop
import gconv.optim

HERE = Path(__file__).parent
SCRIPTS = HERE / "typing"
WRONG = [i for i, line in enumerate((SCRIPTS / "wrong_script.py").read_text().splitlines(), 1) if line.endswith("# wrong")]


def mypy() -> dict[str, list[int]]:
    """The lines of each script about which mypy complains, of a user who asks for everything. optax has no types."""
    options = ["--strict", "--no-error-summary", "--config-file=", "--disable-error-code=import-untyped"]
    cache = f"--cache-dir={HERE.parent / '.mypy_cache' / 'users'}"
    done = _run("mypy", *options, cache, *map(str, sorted(SCRIPTS.glob("*.py"))))
    return _lines(re.findall(r"(\w+\.py):(\d+): error", done.stdout), done)


def pyright() -> dict[str, list[int]]:
    """And about which pyright does."""
    done = _run("pyright", "--outputjson", "--pythonpath", sys.executable, *map(str, sorted(SCRIPTS.glob("*.py"))))
    found = json.loads(done.stdout)["generalDiagnostics"]
    errors = [e for e in found if e["severity"] == "error"]
    return _lines([(Path(e["file"]).name, e["range"]["start"]["line"] + 1) for e in errors], done)


def _run(module: str, *options: str) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, "-m", module, *options], capture_output=True, text=True, cwd=HERE.parent)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done


def _lines(found, done) -> dict[str, list[int]]:
    lines = {path.name: sorted({int(line) for name, line in found if name == path.name}) for path in SCRIPTS.glob("*.py")}
    assert {name for name, _ in found} <= {*lines}, f"complaints about gconv itself: {done.stdout}"
    return lines


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_a_users_script_is_right_and_its_mistakes_are_found(checker):
    found = checker()
    assert found["user_script.py"] == []
    assert found["wrong_script.py"] == WRONG


def test_the_script_of_the_checkers_runs():
    done = _run_script(SCRIPTS / "user_script.py")
    assert done.returncode == 0, done.stderr
    assert "GroupedConvolution2DLayer with properties" in done.stdout


def _run_script(path: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(path)], capture_output=True, text=True, cwd=HERE.parent)


# --- names ---------------------------------------------------------------------------------------------------------------

SUBMODULES = {"initializers", "interop", "linen", "nnx", "optim"}


def test_completion_shows_the_public_names_and_nothing_else():
    assert {*dir(gconv)} == {*gconv.__all__} | SUBMODULES
    for module in (gconv.optim, gconv.interop, gconv.nnx, gconv.linen, gconv.initializers):
        assert {*dir(module)} == {*module.__all__}
    for module in (gconv, gconv.optim, gconv.interop, gconv.nnx, gconv.linen, gconv.initializers):
        assert all(getattr(module, name) is not None for name in module.__all__)
        assert [*module.__all__] == sorted(module.__all__) or module is gconv
    assert not {"importlib", "sys", "TYPE_CHECKING", "op", "backends", "geometry"} & {*dir(gconv)}


def test_a_star_import_brings_the_functions_and_leaves_flaxs_names():
    names: dict = {}
    exec("from flax import nnx, linen\nfrom gconv import *", names)
    assert names["nnx"] is nnx and names["grouped_conv"] is gconv.grouped_conv
    assert {*names} - {"__builtins__", "nnx", "linen"} == {*gconv.__all__}


def test_help_shows_the_public_functions_and_nothing_else():
    text = pydoc.plain(pydoc.render_doc(gconv))
    functions = text.partition("\nFUNCTIONS\n")[2].partition("\nVERSION\n")[0]
    shown = re.findall(r"^    (\w+)\(|^    (\w+) = ", functions, re.M)
    assert {a or b for a, b in shown} == {name for name in gconv.__all__ if name != "__version__"}
    assert "\nDATA\n" not in text and "\nCLASSES\n" not in text
    text = pydoc.plain(pydoc.render_doc(gconv.optim))
    assert "training_options(" in text and "importlib" not in text


def test_a_misspelt_name_of_the_package_is_named():
    with pytest.raises(AttributeError, match="no attribute 'groupd_conv'") as raised:
        gconv.groupd_conv  # noqa: B018
    assert (raised.value.name, raised.value.obj) == ("groupd_conv", gconv), "from which Python guesses what was meant"
    with pytest.raises(AttributeError, match="no attribute 'sgd'"):
        gconv.optim.sgd  # noqa: B018


def test_signatures_are_the_functions_own():
    import inspect

    assert [*inspect.signature(gconv.grouped_conv).parameters][:4] == ["x", "kernel", "bias", "groups"]
    assert "feature_group_count" not in str(inspect.signature(gconv.nnx.GroupedConv))
    assert [*inspect.signature(gconv.linen.GroupedConv).parameters][:3] == ["kernel_size", "filters_per_group", "groups"]


# --- what is printed -----------------------------------------------------------------------------------------------------


def test_a_repr_says_what_is_not_the_default():
    layer = gconv.nnx.GroupedConv(6, 3, 4, 2, padding="same", strides=2, dtype="bfloat16", rngs=nnx.Rngs(0))
    assert repr(layer.config) == (
        "Config(kernel_size=(3, 3), filters_per_group=4, groups=2, strides=(2, 2), padding='same', dtype='bfloat16')"
    )
    text = re.sub(r"\x1b\[[\d;]*m", "", repr(layer))
    head = text.partition("  kernel=")[0]
    assert head.split("\n", 1)[1] == (
        "  in_features=6,\n  kernel_size=(3, 3),\n  filters_per_group=4,\n  groups=2,\n  strides=(2, 2),\n  padding='same',\n"
        "  dtype='bfloat16',\n"
    )
    assert "bias=Param" in text and "mask" not in text and "name" not in text
    bare = gconv.nnx.GroupedConv(6, 3, 4, 2, use_bias=False, name="stem", rngs=nnx.Rngs(0))
    assert "use_bias=False" in repr(bare) and "bias=Param" not in repr(bare) and "name='stem'" in repr(bare)
    module = gconv.linen.GroupedConv(3, 4, 2, padding="same", kernel_init=gconv.initializers.he(groups=2), name="conv1")
    expected = "kernel_size=3, filters_per_group=4, groups=2, padding='same', kernel_init=he(groups=2), name='conv1'"
    assert repr(module) == f"GroupedConv({expected})"
    one = gconv.nnx.GroupedConv(1, 1, 1, 1, mask=jax.numpy.ones((1, 1, 1, 1)), rngs=nnx.Rngs(0))
    assert "mask=" in repr(one) and "GroupedConv(" in repr(nnx.Sequential(one))
    assert repr(gconv.optim.factors(layer)) == "Factors of 2 parameters: print shows them"
    found = gconv.interop.from_gconv(bare)
    assert repr(found) == "Convolution(kernel=<float32 (3, 3, 3, 8)>, groups=2, use_bias=False, name='stem')"
    assert repr(gconv.nnx.GroupedConv(6, 3, 4, 2, rngs=nnx.Rngs(0)).config).count("=") == 3


def test_a_repr_can_be_made_again():
    for options in (dict(), dict(strides=(2, 1), padding=[1, 2, 0, 1], dilation=2, padding_value="circular", use_bias=False)):
        layer = gconv.nnx.GroupedConv(6, (3, 2), 4, 2, **options, rngs=nnx.Rngs(0))
        again = gconv.nnx.GroupedConv(6, **layer.config.told(), rngs=nnx.Rngs(0))
        assert again.config == layer.config


def test_matlabs_read_only_properties():
    layer, module = gconv.nnx.GroupedConv(6, 3, 4, 2, rngs=nnx.Rngs(0)), gconv.linen.GroupedConv(3, 4, 2)
    for one in (layer, module):
        assert (one.num_inputs, one.input_names, one.num_outputs, one.output_names) == (1, ("in",), 1, ("out",))
        assert (one.padding_mode, one.padding_size) == ("manual", (0, 0, 0, 0))
    with pytest.raises(AttributeError, match="`num_inputs` of GroupedConv is the same for every layer"):
        layer.num_inputs = 2
    for name, here in {"NumInputs": "num_inputs", "OutputNames": "output_names", "PaddingSize": "padding_size"}.items():
        with pytest.raises(AttributeError, match=f"no `{name}`: what MATLAB calls so is `{here}`"):
            getattr(layer, name)
    for name, here in {"feature_group_count": "groups", "stride": "strides", "weight": "kernel"}.items():
        with pytest.raises(AttributeError, match=f"no `{name}`: here it is `{here}`"):
            getattr(layer, name)
        with pytest.raises(AttributeError, match=f"no `{name}`: here it is `{here}`"):
            setattr(layer, name, 2)
    with pytest.raises(AttributeError, match="no attribute 'anything'"):
        layer.anything  # noqa: B018
    assert not hasattr(layer, "feature_group_count") and jax.tree.leaves(layer)
