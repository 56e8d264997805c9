"""The layers of real networks, in layers.json."""

import json
from pathlib import Path

from benchmarks.cases.convolution import Case, case


def layers() -> list[Case]:
    """The layers of layers.json, at their full sizes."""
    found = []
    for row in json.loads((Path(__file__).parent / "layers.json").read_text())["layers"]:
        padding = row["padding"] if isinstance(row["padding"], str) else [tuple(pair) for pair in row["padding"]]
        sizes = (row[key] for key in ("name", "batch", "spatial", "in_channels", "out_channels", "groups", "window"))
        found.append(case(*sizes, strides=row["strides"], dilation=row["dilation"], padding=padding))
    return found
