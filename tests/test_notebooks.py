"""Every notebook runs from top to bottom and says what it found. (`digits` has a test of its own, with its accuracy.)"""

import runpy
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="the notebooks need the extra 'notebooks'")

# Models as users write them, and optax, mix ranks and types.
pytestmark = pytest.mark.usefixtures("lenient")
NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


@pytest.fixture
def run(monkeypatch):
    """`run(name)` executes a notebook: its variables, and how many pictures it drew."""
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="the notebooks need the extra 'notebooks'")

    pyplot.switch_backend("Agg")
    pyplot.close("all")

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
    assert pictures == 4 and result["receptive_field"] == 16


def test_moving_in_keeps_the_numbers(run):
    result, pictures = run("moving_in")
    assert pictures == 2 and max(result["matlab_error"], result["torch_error"]) < 1e-5
    assert result["shift"].mean() > 0.01, "the trap of padding=1 with stride 2"


def test_a_fast_model_predicts_the_same(run):
    result, pictures = run("make_it_fast")
    assert pictures == 1 and len(result["surgery"].changed) == 7 and result["difference"] < 1e-5


def test_streams_are_the_whole_sequence(run):
    result, pictures = run("streaming")
    assert pictures == 3 and result["error_after"] < 0.1 * result["error_before"]
    assert max(result[f"{kind}_error"] for kind in ("stream", "chunk", "packed")) < 1e-5


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.py")), ids=lambda path: path.stem)
def test_each_is_a_notebook_that_says_what_one_learns(path):
    jupytext = pytest.importorskip("jupytext", reason="the notebooks need the extra 'notebooks'")
    cells = jupytext.read(path, fmt="py:percent").cells
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    assert "What one learns here:" in cells[0].source
    assert sum(cell.cell_type == "code" for cell in cells) >= 3
