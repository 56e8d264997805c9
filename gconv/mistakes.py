"""Arrays in another library's layout: an error of shapes says so where another reading of them would work.

Shapes only, and nothing but the standard library.
"""

from collections.abc import Callable, Iterator

Shape = tuple


def other_layout(check: Callable[[Shape, Shape], object], name: str, shape: Shape, kernel: Shape) -> str:
    """A sentence, with a space before it, that names the conversions with which `check` passes; empty where none do.

    Args:
      check: raises a ValueError or TypeError for shapes of the first operand and of the kernel that do not go together.
      name: of the first operand.
      shape, kernel: the shapes that were given, with which it raised.
    """
    for why_kernel, kernel_code, kernel_shape in _kernels(kernel):
        for why_first, code, first in _channels_last(name, shape, len(kernel_shape) - 2):
            if not (code or kernel_code):
                continue
            try:
                check(first, kernel_shape)
            except (ValueError, TypeError):
                continue
            reasons = " and ".join(filter(None, (why_first, why_kernel)))
            return f" They would fit with {reasons}: {', '.join(filter(None, (code, kernel_code)))}."
    return ""


def torch_order(axes: int) -> str:
    """The permutation from PyTorch's layout of a kernel with so many axes to ours, as it is written."""
    return ", ".join(map(str, (*range(2, axes), 1, 0)))


def _kernels(shape: Shape) -> Iterator[tuple[str, str, Shape]]:
    """The kernel as it is, as PyTorch's `(out, in / groups, *window)`, as MATLAB's `(*window, channels, filters, groups)`."""
    yield "", "", shape
    if 3 <= len(shape) <= 5:
        code = f"kernel.transpose({torch_order(len(shape))})"
        yield "`kernel` in PyTorch's layout", code, (*shape[2:], shape[1], shape[0])
    if 4 <= len(shape) <= 6:
        *window, channels, filters, groups = shape
        code = "gconv.interop.kernel_from_matlab(kernel)"
        yield "`kernel` in MATLAB's layout", code, (*window, channels, filters * groups)


def _channels_last(name: str, shape: Shape, rank: int) -> Iterator[tuple[str, str, Shape]]:
    """The first operand as it is, and with its channels moved from before its `rank` spatial axes to the end."""
    yield "", "", shape
    axis = len(shape) - rank - 1
    if axis in (0, 1):
        code = f"jnp.moveaxis({name}, {axis}, -1)"
        yield f"the channels of `{name}` first", code, (*shape[:axis], *shape[axis + 1 :], shape[axis])
