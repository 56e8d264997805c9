"""The same layers in PyTorch: values and both gradients of `nn.Conv1d`, `nn.Conv2d` and `nn.Conv3d` with groups."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from cases import Case, assert_matches

from gconv import grouped_conv

torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")

MODES = {"zeros": 0, "reflect": "symmetric-exclude-edge", "replicate": "replicate", "circular": "circular"}
CASES = (
    Case("1d-grouped", (2,), (11,), (3,), 3, 2, 2, strides=2, padding=2, dilation=2, bias=True),
    Case("1d-depthwise", (2,), (9,), (4,), 5, 1, 1, padding=3),
    Case("1d-same-even-window", (2,), (8,), (4,), 2, 2, 1, padding="same"),
    Case("2d-grouped", (2,), (7, 6), (3, 2), 2, 3, 2, strides=(1, 2), padding=(2, 1), dilation=(2, 1), bias=True),
    Case("2d-depth-multiplier", (1,), (6, 6), (3, 3), 4, 1, 2, strides=2, padding=1, bias=True),
    Case("2d-dense", (2,), (5, 5), (3, 3), 1, 3, 4),
    Case("2d-same-dilated", (1,), (6, 7), (2, 3), 2, 1, 2, padding="same", dilation=(3, 2)),
    Case("3d-grouped", (1,), (4, 5, 4), (2, 3, 2), 2, 2, 2, strides=(2, 1, 1), padding=(1, 2, 0), bias=True),
)


def channels_first(a, rank):
    return torch.tensor(np.moveaxis(np.float64(a), -1, a.ndim - rank - 1))


def channels_last(a, rank):
    return np.moveaxis(a.detach().numpy(), a.ndim - rank - 1, -1)


def torch_values_and_gradients(case, arrays, mode) -> dict:
    """In float64, in gconv's layouts."""
    x, kernel, bias, ct = arrays
    rank = case.rank
    layer = getattr(torch.nn, f"Conv{rank}d")(
        case.groups * case.channels,
        case.groups * case.filters,
        case.window,
        case.strides,
        case.padding,
        case.dilation,
        case.groups,
        bias=case.bias,
        padding_mode=mode,
        dtype=torch.float64,
    )
    # (*window, J, C_out) -> (C_out, J, *window)
    layer.weight.data = torch.tensor(np.float64(kernel).transpose(rank + 1, rank, *range(rank)).copy())
    if case.bias:
        layer.bias.data = torch.tensor(np.float64(bias))
    x = channels_first(x, rank).requires_grad_()
    y = layer(x)
    y.backward(channels_first(ct, rank))
    kernel_gradient = layer.weight.grad.numpy().transpose(*range(2, rank + 2), 1, 0)
    values = {"y": channels_last(y, rank), "x": channels_last(x.grad, rank), "w": kernel_gradient}
    return values | ({"b": layer.bias.grad.numpy()} if case.bias else {})


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case, mode):
    case = replace(case, padding_value=MODES[mode])
    arrays = case.arrays()
    operands = arrays[:3] if case.bias else arrays[:2]

    @jax.jit
    def run(operands, ct):
        y, vjp = jax.vjp(lambda *a: grouped_conv(*a, **case.options), *operands)
        return y, *vjp(ct)

    got = dict(zip("yxwb", run(operands, arrays[3]), strict=False))
    assert_matches(case, got, arrays, torch_values_and_gradients(case, arrays, mode))
