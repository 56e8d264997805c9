"""Executes the notebooks: each Python script here and its .ipynb are a pair, and the .ipynb holds what running it showed.

python -m notebooks                     all of them
python -m notebooks digits streaming    these

Jupyter with jupytext keeps the pair together too (jupytext.toml); a test says when it has come apart.
"""

import base64
import io
import os
import sys
import tempfile
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).parent
SCRIPTS = sorted(path for path in HERE.glob("*.py") if not path.name.startswith("_"))
DOTS, COLOURS = 90, 128  # per inch, and of a picture: they show on any screen and weigh little


def execute(script: Path) -> Path:
    """Writes the executed notebook beside the script, without what differs from run to run: times, names and versions."""
    notebook = jupytext.read(script, fmt="py:percent")
    with tempfile.TemporaryDirectory() as folder:  # where the notebook leaves its files
        NotebookClient(
            notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}
        ).execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python", "file_extension": ".py", "pygments_lexer": "ipython3"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
        if cell.cell_type == "code":
            cell.outputs = merged(cell.outputs)
    target = script.with_suffix(".ipynb")
    nbformat.write(notebook, target)
    return target


def merged(outputs: list) -> list:
    """Outputs with neighbouring pieces of one stream as one, and of a picture only the picture."""
    found: list = []
    for output in outputs:
        if output.output_type == "stream" and found and found[-1].get("name") == output.name:
            found[-1].text += output.text
            continue
        if "image/png" in output.get("data", {}):
            output.data, output.metadata = {"image/png": small(output.data["image/png"])}, {}
        found.append(output)
    return found


def small(picture: str) -> str:
    """The same PNG with a palette."""
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB").quantize(COLOURS)
    image.save(data := io.BytesIO(), "png", optimize=True)
    return base64.b64encode(data.getvalue()).decode()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "matplotlibrc").write_text(f"figure.dpi: {DOTS}\n")
        os.environ["MATPLOTLIBRC"] = folder
        os.environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH")))
        )
        for script in [HERE / f"{name}.py" for name in sys.argv[1:]] or SCRIPTS:
            target = execute(script)
            print(f"{target.relative_to(HERE.parent)}: {target.stat().st_size / 1000:.0f} kB")
