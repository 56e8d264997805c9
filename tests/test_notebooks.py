"""Every notebook runs from top to bottom and says what it found; its .ipynb is of the same cells, and was executed.

(`digits` has a test of its own, with its accuracy.)
"""

import ast
import runpy
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="the notebooks need the extra 'notebooks'")

# Models as users write them, and optax, mix ranks and types.
pytestmark = pytest.mark.usefixtures("lenient")
NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
SCRIPTS = sorted(path for path in NOTEBOOKS.glob("*.py") if not path.name.startswith("_"))
LARGEST, ALL = 200_000, 600_000  # bytes of an executed notebook, and of all


@pytest.fixture
def run(monkeypatch):
    """`run(name)` executes a notebook: its variables, and how many pictures it drew."""
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="the notebooks need the extra 'notebooks'")

    pyplot.switch_backend("Agg")
    pyplot.close("all")
    monkeypatch.setattr(pyplot, "show", lambda: None)  # a notebook shows its pictures, a test looks at them

    def execute(name: str) -> tuple[dict, int]:
        result = runpy.run_path(str(NOTEBOOKS / f"{name}.py"))
        for number in pyplot.get_fignums():
            pyplot.figure(number).canvas.draw()  # nothing is wrong with the pictures either
        return result, len(pyplot.get_fignums())

    yield execute
    pyplot.close("all")


def test_fine_tuning_learns_in_every_loop(run):
    result, _ = run("fine_tuning")
    for loop in ("nnx", "plain", "linen"):
        assert result[f"{loop}_accuracy"] > 0.9, loop
    assert result["moments"] == 2 * (4 * 4 * 32 * 5 + 5)


def test_grouped_convolution_is_drawn(run):
    result, pictures = run("grouped_convolution")
    assert pictures == 5 and result["receptive_field"] == 16


def test_moving_in_keeps_the_numbers(run):
    result, pictures = run("moving_in")
    assert pictures == 2 and max(result["matlab_error"], result["torch_error"]) < 1e-5
    assert result["shift"].mean() > 0.01, "the trap of padding=1 with stride 2"


def test_a_fast_model_predicts_the_same(run):
    result, pictures = run("make_it_fast")
    assert pictures == 1 and len(result["surgery"].changed) == 8 and result["difference"] < 1e-5


def test_streams_are_the_whole_sequence(run):
    result, pictures = run("streaming")
    assert pictures == 3 and result["error_after"] < 0.1 * result["error_before"]
    assert max(result[f"{kind}_error"] for kind in ("stream", "chunk", "packed")) < 1e-5


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_each_is_a_notebook_that_says_what_one_learns(path):
    jupytext = pytest.importorskip("jupytext", reason="the notebooks need the extra 'notebooks'")
    cells = jupytext.read(path, fmt="py:percent").cells
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    assert "What one learns here:" in cells[0].source
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    assert len(code) >= 3
    assert max(len(line) for source in code for line in source.splitlines()) <= 100, "scrolls sideways on the site"


# --- the executed notebooks -------------------------------------------------------------------------------------------


def cells_of(path: Path) -> list:
    jupytext = pytest.importorskip("jupytext", reason="the notebooks need the extra 'notebooks'")
    return jupytext.read(path, **({"fmt": "py:percent"} if path.suffix == ".py" else {})).cells


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_the_pair_holds_the_same_cells(path):
    script, executed = cells_of(path), cells_of(path.with_suffix(".ipynb"))
    remedy = f"run `python -m notebooks {path.stem}`"
    assert [cell.cell_type for cell in executed] == [cell.cell_type for cell in script], remedy
    for number, (ours, theirs) in enumerate(zip(script, executed, strict=True)):
        assert theirs.source == ours.source, f"cell {number}: {remedy}"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_the_notebook_was_executed_and_shows_what_it_found(path):
    code = [cell for cell in cells_of(path.with_suffix(".ipynb")) if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    for cell in code:
        kinds = [output.output_type for output in cell.outputs]
        assert set(kinds) <= {"stream", "display_data"}, f"an error, or a value that nobody asked for: {cell.outputs}"
        assert all(output.name == "stdout" for output in cell.outputs if output.output_type == "stream"), cell.outputs
        statements = [node for node in ast.parse(cell.source).body if not isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        called = {call.func for node in statements for call in ast.walk(node) if isinstance(call, ast.Call)}
        names = {ast.unparse(function) for function in called}
        assert "print" not in names or "stream" in kinds, f"prints, and shows nothing: {cell.source}"
        printed = [line for output in cell.outputs for line in output.get("text", "").splitlines()]
        assert max(map(len, printed), default=0) <= 100, f"scrolls sideways on the site: {max(printed, key=len)}"
        assert "plt.subplots" not in names or "display_data" in kinds, f"draws, and shows nothing: {cell.source}"


def test_pictures_are_small():
    sizes = {path.name: path.stat().st_size for path in NOTEBOOKS.glob("*.ipynb")}
    assert len(sizes) == len(SCRIPTS)
    assert max(sizes.values()) <= LARGEST and sum(sizes.values()) <= ALL, sizes


def test_no_machine_shows():
    for path in NOTEBOOKS.glob("*.ipynb"):
        text = path.read_text()
        assert str(Path.home()) not in text and "/tmp/" not in text and "site-packages" not in text, path.name
