"""What `gconv.fuse` did to a function."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fused:
    """One convolution of a program, or a matrix product.

    Attributes:
      convolution: its role, window and channels, in words.
      parts: what was put into it: of "gate", "scale", "shift", "residual" and an activation's name, in this order.
      reason: why nothing else was.
      is_matrix: whether it is a matrix product.
    """

    convolution: str
    parts: tuple[str, ...]
    reason: str
    is_matrix: bool = False


@dataclass(frozen=True, slots=True)
class Fusion:
    """What became of the convolutions of a function, in the order in which they stand there; `print` shows it.

    Attributes:
      convolutions: a `Fused` for each, once for all turns of a loop; also for each matrix product `x @ matrix`.
      refused: why nothing at all was done, or None.
      cascades: how many groups of two or three of them run row by row: what lies between them stays in the caches, on CPU.
      sums: how many sums over the pixels of an image follow them, which on CPU have a kernel as well.
    """

    convolutions: tuple[Fused, ...] = ()
    refused: str | None = None
    cascades: int = 0
    sums: int = 0

    def __str__(self) -> str:
        rows = self.convolutions
        counts = []
        for kind, is_matrix in (("convolutions", False), ("matrix products", True)):
            if taken := [bool(row.parts) for row in rows if row.is_matrix == is_matrix]:
                counts.append(f"{sum(taken)} of {len(taken)} {kind}")
        lines = [f"{' and '.join(counts) or '0 of 0 convolutions'} take in what follows them"]
        lines += [f"nothing was changed: {self.refused}"] if self.refused else []
        lines += [f"groups of convolutions that run row by row: {self.cascades}"] if self.cascades else []
        lines += [f"sums over the pixels of an image: {self.sums}"] if self.sums else []
        width = max([len(row.convolution) for row in rows], default=0)
        what = lambda row: ", ".join(row.parts) if row.parts else f"nothing: {row.reason}"
        return "\n".join([*lines, *(f"  {row.convolution:<{width}}  {what(row)}" for row in rows)])
