"""The tables of whole models."""

import statistics
from collections.abc import Iterator, Sequence

from benchmarks.programs import contenders, networks, profile
from benchmarks.reporting.numbers import TORCH, mean, ms, part, table

NAMES = {
    "mobilenet_v2": "MobileNetV2",
    "efficientnet_b0": "EfficientNet-B0",
    "resnext50_32x4d": "ResNeXt-50",
    "convnext_t": "ConvNeXt-T",
    "regnetx_400mf": "RegNetX-400MF",
    "mamba": "Mamba block",
}
# Who is shown, and the peers of a row of whom it is the best. Rows up to 2026-11-25 have models of gconv's own layers, "gconv".
ALONE, INSTALLED, GCONV = "JAX", "installed", "gconv"
SHOWN = {
    ALONE: (contenders.ALONE,),
    INSTALLED: ("nnx.Conv installed",),
    GCONV: (*contenders.OURS.values(), "gconv"),
    "PyTorch": TORCH,
    "torch.compile": ("PyTorch compiled",),
    "ONNX Runtime": ("ONNX Runtime",),
    "OpenVINO": ("OpenVINO",),
}
RIVALS = ("PyTorch", "torch.compile", "ONNX Runtime", "OpenVINO")
ENGINES = ("ONNX Runtime", "OpenVINO")
WORKS = {("inference", 1): (1.0, 0.85), ("inference", 8): (1.0, 0.9), ("training", 8): (1.2, 0.97)}
"""What is measured in float32, mode and batch, and its targets: the best of the others over gconv in geometric mean, and the
least."""


def name_of(row: dict) -> str:
    return NAMES.get(row["case"], row["case"])


def shown(values: dict[str, float]) -> dict[str, float]:
    """By who is shown: the least value of their peers that there are."""
    found = {who: [values[peer] for peer in peers if peer in values] for who, peers in SHOWN.items()}
    return {who: min(of) for who, of in found.items() if of}


def seconds(row: dict) -> dict[str, float]:
    return shown({peer: times["median"] for peer, times in row["times"].items()})


def added(row: dict) -> dict[str, float]:
    """Bytes that a call adds at its peak."""
    return shown({peer: peak["peak"] - peak["before"] for peer, peak in row["peaks"].items()})


def over(values: dict[str, float], others: Sequence[str]) -> float | None:
    """The best of the others over gconv."""
    found = [values[other] for other in others if other in values]
    return min(found) / values[GCONV] if found and GCONV in values else None


def by_work(rows: list[dict]) -> Iterator[tuple[str, list[dict], list[dict]]]:
    """What was done; its rows; and those of them which a mean is of: in inference, those of the images' networks."""
    work_of = lambda row: (row["mode"], row["batch"], row["dtype"])
    for mode, batch, dtype in sorted(set(map(work_of, rows)), key=lambda work: (*work[:2], work[2] != "float32")):
        of = [row for row in rows if work_of(row) == (mode, batch, dtype)]
        of.sort(key=lambda row: [*NAMES, row["case"]].index(row["case"]))
        images = [row for row in of if row["case"] in networks.IMAGES]
        words = "a training step" if mode == "training" else mode
        words += "" if dtype == "float32" else f" in {dtype}"
        yield f"{words}, batch {batch}", of, of if mode == "training" else images or of


def in_float32(rows: list[dict]) -> list[dict]:
    """The rows of times that the plot and the glance show."""
    return [row for row in part(rows, "models") if row["dtype"] == "float32"]


def factor(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


# --- times -----------------------------------------------------------------------------------------------------------


def verdict(rows: list[dict]) -> str:
    """How far ahead or behind gconv is of the best of the others, and whether that meets the target."""
    found = {name_of(row): ahead for row in rows if (ahead := over(seconds(row), RIVALS)) is not None}
    if not found:
        return ""
    reached, least = statistics.geometric_mean(found.values()), min(found, key=found.__getitem__)
    text = (
        f"The best of the others takes {reached:.2f} times as long as gconv, in geometric mean over {len(found)} networks; "
        f"the least is {found[least]:.2f}, {least}."
    )
    target = WORKS.get((rows[0]["mode"], rows[0]["batch"]))
    if target is None or rows[0]["dtype"] != "float32":
        return text
    met = reached >= target[0] and found[least] >= target[1]
    return f"{text} Target: {target[0]:g}, and none under {target[1]:g}: {'met' if met else 'missed'}."


def models(rows: list[dict], *, details: bool = False) -> str:
    """A table for each work; with details, how noisy it was and how long it took to begin."""
    tables = []
    for words, of, counted in by_work(rows):
        whom = [who for who in SHOWN if any(who in seconds(row) for row in of)]
        head = [f"ms, {words}", *whom, "JAX / gconv", "best other / gconv"]
        lines = []
        for row in of:
            found = seconds(row)
            line = [name_of(row), *(ms(found.get(who)) for who in whom)]
            lines.append(
                [*line, factor(over(found, [ALONE])), factor(over(found, RIVALS)), *(_details(row) if details else [])]
            )
        means = (mean([r for row in counted if (r := over(seconds(row), others))]) for others in ([ALONE], RIVALS))
        lines.append(["geometric mean" + (" without Mamba" if len(counted) < len(of) else ""), *[""] * len(whom), *means])
        lines[-1] += [""] * (len(lines[0]) - len(lines[-1]))
        head += ["of the peak", "spread", "compile", "first call"] if details else []
        tables.append(table(head, lines) + "\n" + verdict(counted) + "\n")
    return "\n".join(tables)


def _details(row: dict) -> list[str]:
    ours = next((row["times"][peer] for peer in SHOWN[GCONV] if peer in row["times"]), None)
    if ours is None:
        return [""] * 4
    spread = f"{(ours['high'] - ours['low']) / ours['median']:.0%}"
    share = f"{row['least'] / ours['median']:.0%}" if "least" in row else ""
    return [share, spread, ms(ours["compile"]), ms(ours["compile"] + ours["first"])]


# --- where the time goes, and memory ---------------------------------------------------------------------------------


def profiles(rows: list[dict]) -> str:
    """Of every network: milliseconds and shares."""
    lines = []
    for words, of, _ in by_work(rows):
        for row in of:
            for peer, kinds in row["kinds"].items():
                total = sum(kinds.values())
                shares = (f"{ms(kinds[kind])} ({kinds[kind] / total:.0%})" for kind in profile.KINDS)
                lines.append([f"{name_of(row)}, {words}, {peer}", *shares])
    return table(["ms in one call (share)", *profile.KINDS.values()], lines)


def profiles_summary(rows: list[dict]) -> str:
    """The mean of the networks' shares."""
    lines = []
    for words, of, _ in by_work(rows):
        for peer in dict.fromkeys(peer for row in of for peer in row["kinds"]):
            kinds = [row["kinds"][peer] for row in of if peer in row["kinds"]]
            shares = (statistics.fmean(k[kind] / sum(k.values()) for k in kinds) for kind in profile.KINDS)
            lines.append([f"{words}, {peer}", len(kinds), *(f"{share:.0%}" for share in shares)])
    return table(["share of the time, mean over networks", "networks", *profile.KINDS.values()], lines)


def memory(rows: list[dict]) -> str:
    """What a call adds, by whom, and how much more or less than PyTorch's that is."""
    tables = []
    for words, of, _ in by_work(rows):
        whom = [who for who in SHOWN if any(who in added(row) for row in of)]
        lines = []
        for row in of:
            found = added(row)
            ratio = over(found, ("PyTorch", "torch.compile"))
            line = [name_of(row), *(f"{found[who] / 2**20:,.0f}" if who in found else "" for who in whom)]
            lines.append([*line, "" if ratio is None else f"{1 / ratio:.2f}"])
        tables.append(table([f"MiB added at the peak, {words}", *whom, "gconv / best of PyTorch"], lines))
    return "\n".join(tables)


# --- a glance --------------------------------------------------------------------------------------------------------


def glance(rows: list[dict]) -> list[list[object]]:
    """For the README: what, and how many times as fast as JAX, PyTorch and the engines gconv is."""
    lines = []
    for words, _, of in by_work(in_float32(rows)):
        against = ((ALONE,), ("PyTorch", "torch.compile"), ENGINES)
        found = ([r for row in of if (r := over(seconds(row), others))] for others in against)
        lines.append([f"{words}: {len(of)} networks", *(f"{statistics.geometric_mean(f):.3g}" if f else "" for f in found)])
    return lines
