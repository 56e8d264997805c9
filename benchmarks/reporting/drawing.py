"""What the plots share: colours, markers, axes and legends.

Colours are Okabe and Ito's, which the colour-blind can tell apart; each peer has a marker of its own as well.
"""

import matplotlib

matplotlib.use("Agg")
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

STYLES = {  # colour, marker
    "gconv": ("#0072B2", "o"),
    "PyTorch": ("#D55E00", "s"),
    "torch.compile": ("#000000", "P"),
    "ONNX Runtime": ("#009E73", "^"),
    "OpenVINO": ("#CC79A7", "v"),
    "lax": ("#E69F00", "D"),
    "JAX": ("#E69F00", "D"),
    "installed": ("#56B4E9", "x"),
}


def plot_peer(axes, x, y, peer: str, *, line: bool) -> None:
    colour, marker = STYLES[peer]
    axes.plot(x, y, marker, color=colour, linestyle="-" if line else "none", label=peer, markersize=5, alpha=0.9)


def plain_numbers(axis) -> None:
    """Ticks of a logarithmic axis as numbers: 0.1, 1, 20."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 50 else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend(figure, panels) -> None:
    handles = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    order = [name for name in STYLES if name in handles]
    order += [name for name in handles if name not in order]
    figure.legend([handles[name] for name in order], order, loc="outside lower center", ncols=len(order))
