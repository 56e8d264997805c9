"""PyTorch's modules and gconv's layers, both ways, on the same inputs: values and gradients."""

import numpy as np
import pytest
from flax import nnx
from foreign import assert_same, first, last, normal, ours

import gconv
from gconv import interop

torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")

SIZES = (9, 8, 7)
CONVS = [
    (1, 4, 6, 3, dict(stride=2, padding=1, dilation=2, groups=2)),
    (1, 3, 6, 4, dict(padding="same", padding_mode="reflect", groups=3)),
    (1, 4, 4, 3, dict(padding=2, padding_mode="circular", bias=False)),
    (2, 4, 8, 3, dict(stride=2, padding=1)),  # the one-pixel shift against "same"
    (2, 6, 6, (3, 2), dict(stride=(1, 3), padding=(2, 1), dilation=(2, 1), groups=6)),
    (2, 4, 6, (2, 3), dict(padding="same", dilation=(3, 2), groups=2, padding_mode="replicate")),
    (2, 4, 6, 3, dict(stride=3, padding=2, groups=2, padding_mode="reflect")),
    (2, 2, 4, 5, dict(padding="valid", bias=False)),
    (3, 4, 4, (2, 3, 2), dict(stride=(2, 1, 1), padding=(1, 2, 0), groups=2, padding_mode="circular")),
]
TRANSPOSED = [
    (1, 4, 6, 3, dict(stride=3, padding=1, output_padding=2, groups=2)),
    (1, 6, 6, 2, dict(stride=3, dilation=2, groups=6, bias=False)),
    (2, 6, 4, 3, dict(stride=2, padding=1, output_padding=1, groups=2)),
    (2, 4, 8, (3, 2), dict(stride=(2, 3), padding=(2, 0), dilation=(2, 1), output_padding=(1, 0))),
    (2, 4, 4, (2, 4), dict(stride=1, dilation=(3, 1), output_padding=(2, 0), groups=4)),
    (3, 4, 6, (2, 3, 1), dict(stride=(2, 1, 3), padding=(0, 1, 0), output_padding=(1, 0, 2), groups=2)),
]


def build(rank, in_channels, out_channels, window, options, transposed):
    torch.manual_seed(rank)
    kind = getattr(torch.nn, f"{'ConvTranspose' if transposed else 'Conv'}{rank}d")
    return kind(in_channels, out_channels, window, **options, dtype=torch.float64)


def theirs(module, x, rank, conv=None) -> dict[str, np.ndarray]:
    """In float64, in gconv's layouts; `conv` is what holds the parameters, in a Sequential."""
    conv = conv or module
    tensor = torch.tensor(first(x, rank), requires_grad=True)
    conv.zero_grad()
    y = module(tensor)
    y.sum().backward()
    axes = (*range(2, rank + 2), 1, 0)
    found = {"y": last(y.detach(), rank), "x": last(tensor.grad, rank), "w": conv.weight.grad.numpy().transpose(axes)}
    return found | ({} if conv.bias is None else {"b": conv.bias.grad.numpy()})


def name(case) -> str:
    rank, *_, options = case
    return f"{rank}d-" + "-".join(f"{k}={v}" for k, v in options.items()).replace(" ", "")


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("case", [*CONVS, *TRANSPOSED], ids=name)
def test_modules_and_state_dicts(case):
    transposed = case in TRANSPOSED
    rank, in_channels, *_, options = case
    module = build(*case, transposed)
    x = normal(0, 2, *SIZES[:rank], in_channels)
    found = interop.from_torch(module)
    assert_same(ours(found, x), theirs(module, x, rank))

    # A state dict and the arguments say the same, and need no PyTorch.
    state = {f"a.b.{key}": value.numpy() for key, value in module.state_dict().items()}
    same = interop.from_torch(state, prefix="a.b.", **options, transposed=transposed)
    assert same.config == found.config
    np.testing.assert_array_equal(same.kernel, found.kernel)

    # And back: the same module, bit for bit.
    back = interop.to_torch(found)
    torch.testing.assert_close(back.state_dict(), module.state_dict(), rtol=0, atol=0)
    tensor = torch.tensor(first(x, rank))
    torch.testing.assert_close(back(tensor), module(tensor), rtol=0, atol=0)


OURS = [
    ("GroupedConv", (6, 3, 4, 2), dict(strides=2, padding="same"), dict(spatial=(9, 8))),
    ("GroupedConv", (6, 4, 2, 3), dict(padding=[1, 2, 0, 3], padding_value=1.5), {}),
    ("GroupedConv", (4, (3,), 2, 4), dict(padding="causal", dilation=2), {}),
    ("GroupedConv", (4, (2, 3), 1, 4), dict(strides=3, padding="same_lower", padding_value="circular"), dict(spatial=(9, 8))),
    ("GroupedConv", (2, (3, 2, 3), 2, 1), dict(padding=[(0, 1), (2, 0), (1, 1)], padding_value="replicate"), {}),
    ("GroupedConvTranspose", (6, 3, 4, 2), dict(strides=2, padding="same"), {}),
    ("GroupedConvTranspose", (4, (2,), 2, 4), dict(strides=3, padding="same_lower"), {}),
    ("GroupedConvTranspose", (4, (3, 2), 2, 2), dict(strides=(2, 1), padding=[0, 1, 1, 0], dilation=(1, 2)), {}),
]


@pytest.mark.parametrize("kind, arguments, options, where", OURS, ids=[name((len(a), k, o)) for k, a, o, _ in OURS])
def test_our_layers_in_pytorch(kind, arguments, options, where):
    layer = getattr(gconv.nnx, kind)(*arguments, **options, bias_init="narrow-normal", rngs=nnx.Rngs(1))
    rank = len(layer.kernel_size)
    module = interop.to_torch(layer, **where).double()
    conv = next(m for m in (module, *module.children()) if hasattr(m, "weight"))
    x = normal(1, 2, *SIZES[:rank], layer.in_features)
    assert_same(ours(interop.from_gconv(layer), x), theirs(module, x, rank, conv))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_state_dict_of_depthwise_weights_needs_groups(rank):
    conv, x = getattr(torch.nn, f"Conv{rank}d"), normal(0, 2, *SIZES[:rank], 16)
    for groups, channels in ((16, 16), (1, 1), (8, 8)):
        module = conv(channels, 16, 3, groups=groups, bias=False)
        with pytest.raises(ValueError, match=r"`groups` must be given.*\(groups=1\).*\(groups=16\).*divisor of 16"):
            interop.from_torch(module.state_dict(), bias=False)
        found = interop.from_torch(module.state_dict(), bias=False, groups=groups)
        assert_same(ours(found, x[..., :channels]), theirs(module.double(), x[..., :channels], rank))
    assert interop.from_torch(conv(1, 1, 3).state_dict()).groups == 1, "one channel in and out leaves no choice"
    assert interop.from_torch(conv(3, 16, 3).state_dict()).groups == 1


@pytest.mark.parametrize("groups, inputs, outputs", [(1, 6, 4), (2, 6, 4), (6, 6, 6), (6, 6, 12), (1, 6, 1), (1, 1, 3)])
def test_a_transposed_state_dict_tells_its_groups_by_the_bias(groups, inputs, outputs):
    module = torch.nn.ConvTranspose2d(inputs, outputs, (2, 3), stride=2, groups=groups)
    x = normal(0, 2, 5, 4, inputs)
    found = interop.from_torch(module.state_dict(), stride=2, transposed=True)
    assert found.groups == groups
    assert_same(ours(found, x), theirs(module.double(), x, 2))
    state = {"weight": module.weight}
    if inputs > 1:
        with pytest.raises(ValueError, match=rf"`groups` must be given.*{outputs // groups} output channels per group and 6"):
            interop.from_torch(state, stride=2, transposed=True, bias=False)
    else:
        assert interop.from_torch(state, stride=2, transposed=True, bias=False).groups == 1


def test_padding_1_with_stride_2_is_not_same():
    module = torch.nn.Conv2d(3, 4, 3, stride=2, padding=1)
    x = normal(2, 1, 8, 8, 3)
    found = interop.from_torch(module)
    shifted = interop.from_torch(module.state_dict(), stride=2, padding=1)
    assert found.config.padding == shifted.config.padding == ((1, 1), (1, 1))
    same = interop.from_arrays(found.kernel, found.bias, strides=2, padding="same")
    assert found(x).shape == same(x).shape
    assert float(abs(found(x) - same(x)).max()) > 0.01, "the trap has no teeth here"


def test_bfloat16_travels_without_loss():
    module = torch.nn.Conv1d(4, 6, 3, groups=2, dtype=torch.bfloat16)
    found = interop.from_torch(module)
    assert found.kernel.dtype.name == found.to_nnx().kernel.dtype.name == "bfloat16"
    torch.testing.assert_close(interop.to_torch(found.to_nnx()).state_dict(), module.state_dict(), rtol=0, atol=0)


def test_training_there_changes_nothing_here():
    module = torch.nn.Conv1d(4, 6, 3)
    found = interop.from_torch(module)
    before = found.kernel.copy()
    with torch.no_grad():
        module.weight.add_(1)
    np.testing.assert_array_equal(found.kernel, before)


def test_what_is_wrong_is_named():
    conv = torch.nn.Conv2d(4, 6, 3)
    state = conv.state_dict()
    wrong = {
        "Conv1d, Conv2d": lambda: interop.from_torch(torch.nn.Linear(3, 4)),
        "a module knows its own": lambda: interop.from_torch(conv, stride=2),
        "no entry 'x.weight'. Prefixes that have one: ''": lambda: interop.from_torch(state, prefix="x."),
        "no entry 'bias'.*bias=False": lambda: interop.from_torch({"weight": state["weight"]}),
        "`padding_mode` must be one of 'zeros', 'reflect'.*'mirror'": lambda: interop.from_torch(state, padding_mode="mirror"),
        "`padding_mode` must be one of 'zeros', got": lambda: interop.from_torch(
            state, transposed=True, padding_mode="reflect"
        ),
        "with stride 1 only": lambda: interop.from_torch(state, padding="same", stride=2),
        "`padding` must be integers, 'same' or 'valid', got 'full'": lambda: interop.from_torch(state, padding="full"),
        r"1, 2 or 3 window axes.*\(6, 4\)": lambda: interop.from_torch({"weight": np.ones((6, 4))}, bias=False),
        r"one entry per output channel, shape \(6,\), got \(5,\)": lambda: interop.from_torch(state | {"bias": np.ones(5)}),
        "must divide": lambda: interop.from_torch(state, groups=4),
        "floating or complex": lambda: interop.from_torch({"weight": np.ones((2, 2, 3), int)}, bias=False),
        r"spatial=\(224, 224\)": lambda: interop.to_torch(
            interop.from_arrays(np.ones((3, 3, 1, 1)), strides=2, padding="same")
        ),
        "no `padding_value`='symmetric-include-edge'": lambda: interop.to_torch(
            interop.from_arrays(np.ones((3, 1, 1)), padding=1, padding_value="symmetric-include-edge")
        ),
    }
    for message, run in wrong.items():
        with pytest.raises((ValueError, TypeError), match=message):
            run()
