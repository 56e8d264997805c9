"""The plots of whole models: a panel for each work, a line for each network."""

from collections.abc import Callable

import matplotlib.pyplot as plt

from benchmarks.programs import profile
from benchmarks.reporting.drawing import legend, plain_numbers, plot_peer
from benchmarks.reporting.model_tables import SHOWN, added, by_work, in_float32, name_of, seconds
from benchmarks.reporting.numbers import part

COLOURS = dict(zip(profile.KINDS, ("#0072B2", "#56B4E9", "#E69F00", "#BBBBBB"), strict=True))


def panels_of(rows: list[dict], title: str, label: str, draw: Callable):
    """A figure in which `draw(axes, row, line)` adds a network to its work's panel."""
    if not rows:
        return None
    works = [*by_work(rows)]
    names = [name_of(row) for row in max((of for _, of, _ in works), key=len)][::-1]
    size = {"figsize": (4 * len(works) + 1, 1.4 + 0.35 * len(names))}
    figure, panels = plt.subplots(1, len(works), **size, sharey=True, squeeze=False, layout="constrained")
    for axes, (words, of, _) in zip(panels[0], works, strict=True):
        for row in of:
            draw(axes, row, names.index(name_of(row)))
        axes.set(title=words, xlabel=label)
        axes.set_yticks(range(len(names)), names)
    legend(figure, panels[0])
    figure.suptitle(title)
    return figure


def dots(values: Callable[[dict], dict[str, float]], unit: float) -> Callable:
    """Draws a dot for everyone who is shown, on a logarithmic axis."""

    def draw(axes, row: dict, line: int) -> None:
        for who in reversed(SHOWN):
            if who in (found := values(row)):
                plot_peer(axes, [found[who] * unit], [line], who, line=False)
        axes.set_xscale("log")
        plain_numbers(axes.xaxis)
        axes.grid(alpha=0.3)

    return draw


def models(rows: list[dict]):
    """Milliseconds."""
    of = in_float32(rows)
    title = f"Whole models, float32, {of[-1]['threads']} threads" if of else ""
    return panels_of(of, title, "ms", dots(seconds, 1e3))


def memory(rows: list[dict]):
    """MiB that a call adds to its process at its peak."""
    return panels_of(part(rows, "memory"), "What one call adds at its peak", "MiB", dots(added, 2**-20))


def profiles(rows: list[dict]):
    """Shares of the time by kind of work, of what gconv makes of a model."""

    def draw(axes, row: dict, line: int) -> None:
        kinds, left = next(iter(row["kinds"].values())), 0.0
        for kind, words in profile.KINDS.items():
            share = 100 * kinds[kind] / sum(kinds.values())
            axes.barh(line, share, left=left, color=COLOURS[kind], label=words)
            left += share

    return panels_of(part(rows, "profile"), "Where the time goes with gconv", "% of the time", draw)


MAKERS = {"models.png": models, "memory.png": memory, "profile.png": profiles}
