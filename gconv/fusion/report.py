"""What `gconv.fuse` did to a function."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fused:
    """One convolution of a program.

    Attributes:
      convolution: its role, window and channels, in words.
      parts: what was put into it: of "scale", "shift", "residual" and an activation's name, in this order.
      reason: why nothing else was.
    """

    convolution: str
    parts: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Fusion:
    """What became of the convolutions of a function, in the order in which they stand there; `print` shows it.

    Attributes:
      convolutions: a `Fused` for each, once for all turns of a loop. refused: why nothing at all was done, or None.
    """

    convolutions: tuple[Fused, ...] = ()
    refused: str | None = None

    def __str__(self) -> str:
        rows = self.convolutions
        lines = [f"{sum(bool(row.parts) for row in rows)} of {len(rows)} convolutions take in what follows them"]
        lines += [f"nothing was changed: {self.refused}"] if self.refused else []
        width = max([len(row.convolution) for row in rows], default=0)
        what = lambda row: ", ".join(row.parts) if row.parts else f"nothing: {row.reason}"
        return "\n".join([*lines, *(f"  {row.convolution:<{width}}  {what(row)}" for row in rows)])
