"""What became of the convolutions that were lowered while gconv was asked about them."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(eq=False)
class Report:
    """How many convolutions of lax gconv took, and which it left to lax; `print` shows it.

    Counted is what is lowered: equations of one program that are equal, shapes and options, are lowered once, and those of a
    loop or of an inner `jax.jit` once for all of its turns.

    Attributes:
      taken: `(role, implementation)` -> how many; `"y"` is the convolution, `"x"` its input gradient, `"w"` its kernel
        gradient. On several devices the implementation is chosen on each of them, and stands here as "per device".
      left: the reason -> how many.
    """

    taken: Counter = field(default_factory=Counter)
    left: Counter = field(default_factory=Counter)

    def __str__(self) -> str:
        taken, left = self.taken.total(), self.left.total()
        lines = [f"{taken} of {taken + left} convolutions computed by gconv"]
        lines += [f"  {count:>4}  role {role} by {name}" for (role, name), count in sorted(self.taken.items())]
        lines += [f"  {count:>4}  left to lax: {reason}" for reason, count in self.left.most_common()]
        return "\n".join(lines)
