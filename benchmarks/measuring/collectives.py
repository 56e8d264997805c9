"""What a compiled program sends from device to device, read off its text."""

import math
import re
from collections import Counter
from dataclasses import dataclass

KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "reduce-scatter",
    "collective-broadcast",
    "ragged-all-to-all",
)
BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}
_LINE = re.compile(rf"= (?P<result>.+?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(")
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")


@dataclass(frozen=True, slots=True)
class Collective:
    """One instruction: `bytes` of its result on one device, and how many devices take part together.

    Attributes:
      kind: "all-reduce", "all-gather", "collective-permute", ...
      bytes: size of its result on one device.
      devices: in one group; of a collective-permute 2.
    """

    kind: str
    bytes: int
    devices: int

    @property
    def sent(self) -> float:
        """Bytes that each device sends by the usual ring algorithms (Patarasuk and Yuan, 2009)."""
        n = self.devices
        share = {"all-reduce": 2 * (n - 1) / n, "all-gather": (n - 1) / n, "all-to-all": (n - 1) / n, "reduce-scatter": n - 1}
        return self.bytes * share.get(self.kind, 1)


def collectives(text: str) -> list[Collective]:
    """Of a program's `compile().as_text()`: each collective instruction once, also where a loop runs it more often."""
    found = []
    for line in text.splitlines():
        if not (match := _LINE.search(line)):
            continue
        shapes = [_bytes(*shape) for shape in _SHAPE.findall(match["result"])]
        # The first half of an asynchronous one holds its operand too.
        size = shapes[1] if match["start"] and match["kind"] != "all-reduce" else sum(shapes)
        found.append(Collective(match["kind"], size, 2 if match["kind"] == "collective-permute" else _group(line)))
    return found


def count(text: str) -> Counter:
    """How many collectives of each kind."""
    return Counter(c.kind for c in collectives(text))


def _bytes(name: str, dimensions: str) -> int:
    bits = BITS.get(name) or int(re.search(r"\d+", name)[0])
    return math.prod(int(n) for n in dimensions.split(",") if n) * bits // 8


def _group(line: str) -> int:
    """Devices per group, in each of the three ways that XLA writes it."""
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    match = re.search(r"replica_groups=\S*mesh\[(.*?)\][^{]*\{(.*?)\}", line)
    if match is None:
        raise ValueError(f"no replica groups that this reader knows in: {line.strip()}")
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", match[1]))
    return math.prod(int(sizes[name]) for name in re.findall(r"'([^']+)'", match[2]))
