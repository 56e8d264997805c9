"""ONNX's Conv and ConvTranspose and gconv's layers, both ways, on the same inputs in onnxruntime.

An ONNX graph has no gradients. What onnxruntime refuses runs in onnx's own reference, which for most ConvTranspose raises.
"""

import numpy as np
import pytest
from flax import nnx
from foreign import first, last, normal

import gconv
from gconv import interop

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install onnx")

SIZES = (9, 8, 7)


def model_of(nodes, initializers, rank: int):
    typed = lambda name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * (rank + 2))
    graph = onnx.helper.make_graph(nodes, "one", [typed("x")], [typed("y")], initializers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def run_reference(nodes, initializers, x):
    from onnx.reference import ReferenceEvaluator

    rank = x.ndim - 2
    return last(ReferenceEvaluator(model_of(nodes, initializers, rank)).run(None, {"x": np.float32(first(x, rank))})[0], rank)


def run_onnxruntime(nodes, initializers, x):
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install onnxruntime")
    rank = x.ndim - 2
    session = ort.InferenceSession(model_of(nodes, initializers, rank).SerializeToString(), providers=["CPUExecutionProvider"])
    return last(session.run(None, {"x": np.float32(first(x, rank))})[0], rank)


# op, window, group, attributes; ConvTranspose in 1-D and 2-D
NODES = [
    ("Conv", (3,), 2, dict(auto_pad="SAME_LOWER", strides=[2], dilations=[2])),
    ("Conv", (4, 3), 1, dict(auto_pad="SAME_UPPER", strides=[2, 3])),
    ("Conv", (4, 3), 4, dict(auto_pad="SAME_LOWER", strides=[3, 2])),
    ("Conv", (2, 3), 2, dict(auto_pad="VALID")),
    ("Conv", (3, 2), 2, dict(pads=[0, 2, 1, 1], strides=[1, 2], dilations=[2, 1])),
    ("Conv", (2, 3, 1), 4, dict(pads=[1, 0, 0, 0, 2, 0], strides=[2, 1, 1])),
    ("ConvTranspose", (3,), 2, dict(strides=[3], pads=[1, 0], output_padding=[2])),
    ("ConvTranspose", (3, 2), 1, dict(strides=[2, 3], pads=[1, 0, 0, 1], dilations=[2, 1])),
    ("ConvTranspose", (3, 4), 4, dict(strides=[2, 3], output_padding=[1, 2], group=4)),
    ("ConvTranspose", (4, 2), 2, dict(strides=[2, 3], auto_pad="VALID")),
    ("ConvTranspose", (3, 4), 2, dict(strides=[2, 3], auto_pad="SAME_UPPER")),
    ("ConvTranspose", (3, 4), 2, dict(strides=[2, 3], auto_pad="SAME_LOWER")),
    ("ConvTranspose", (4,), 1, dict(strides=[3], auto_pad="SAME_UPPER", output_padding=[2])),
    ("ConvTranspose", (5, 2), 1, dict(strides=[3, 3], output_shape=[26, 24])),
    ("ConvTranspose", (5, 4), 1, dict(strides=[3, 3], output_shape=[24, 22], auto_pad="SAME_UPPER")),
]


def node_of(op, window, group, attributes, bias=True):
    inputs, outputs = 4, 8
    shape = (outputs, inputs // group, *window) if op == "Conv" else (inputs, outputs // group, *window)
    weights = {"w": np.float32(normal(1, *shape)), "b": np.float32(normal(2, outputs))}
    node = onnx.helper.make_node(op, ["x", "w", "b"] if bias else ["x", "w"], ["y"], **{"group": group, **attributes})
    return node, {k: v for k, v in weights.items() if k == "w" or bias}


@pytest.mark.parametrize("op, window, group, attributes", NODES, ids=[f"{op}-{i}" for i, (op, *_) in enumerate(NODES)])
def test_nodes(op, window, group, attributes):
    refused = "auto_pad" in attributes and "dilations" in attributes
    run = run_reference if refused else run_onnxruntime
    node, weights = node_of(op, window, group, attributes)
    x = np.float32(normal(0, 2, *SIZES[: len(window)], 4))
    tensors = [onnx.numpy_helper.from_array(value, key) for key, value in weights.items()]
    found = interop.from_onnx(node, tensors, spatial=x.shape[1:-1])
    expected = run([node], tensors, x)
    got = np.asarray(found(x))
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=2e-5)

    nodes, back = interop.to_onnx(found, spatial=x.shape[1:-1])
    assert len(nodes) == 1 and nodes[0].op_type == op
    np.testing.assert_allclose(run_onnxruntime(nodes, back, x), expected, atol=2e-5)
    again = interop.from_onnx(nodes[0], back)
    assert again.explicit(x.shape[1:-1]) == found.explicit(x.shape[1:-1])
    np.testing.assert_array_equal(again.kernel, found.kernel)


OURS = [
    ("GroupedConv", (6, 3, 4, 3), dict(strides=2, padding="same", padding_value="circular")),
    ("GroupedConv", (4, (3,), 2, 4), dict(padding="causal", dilation=2, padding_value=1.5, use_bias=False)),
    ("GroupedConv", (4, (3, 2), 2, 2), dict(padding=[1, 2, 0, 1], padding_value="symmetric-exclude-edge")),
    ("GroupedConv", (4, (2, 3, 2), 2, 2), dict(padding=1, padding_value="replicate")),
    ("GroupedConvTranspose", (6, (2, 3), 4, 3), dict(strides=3, padding="same")),
]


@pytest.mark.parametrize("kind, arguments, options", OURS, ids=[f"{k}-{i}" for i, (k, *_) in enumerate(OURS)])
def test_our_layers_in_onnxruntime(kind, arguments, options):
    layer = getattr(gconv.nnx, kind)(*arguments, **options, bias_init="narrow-normal", rngs=nnx.Rngs(0))
    x = np.float32(normal(3, 2, *SIZES[: len(layer.kernel_size)], layer.in_features))
    nodes, tensors = interop.to_onnx(layer, spatial=x.shape[1:-1])
    assert [n.op_type for n in nodes] == (["Pad", "Conv"] if kind == "GroupedConv" else ["ConvTranspose"])
    np.testing.assert_allclose(run_onnxruntime(nodes, tensors, x), layer(x), atol=2e-5)


def test_what_is_wrong_is_named():
    w, make = np.ones((4, 2, 3)), onnx.helper.make_node
    node = make("Conv", ["x", "w", "b"], ["y"])
    wrong = {
        "must be a Conv or ConvTranspose, got Relu": lambda: interop.from_onnx(make("Relu", ["x"], ["y"]), {}),
        "no 'w', which the node reads; it has 'v'": lambda: interop.from_onnx(node, {"v": w}),
        "no 'b', which the node reads": lambda: interop.from_onnx(node, {"w": w}),
        r"window axes after two for channels, got shape \(2, 3\)": lambda: interop.from_onnx(node, {"w": w[0], "b": w[0]}),
        "`auto_pad` must be NOTSET, SAME_UPPER": lambda: interop.from_onnx(
            make("Conv", ["x", "w"], ["y"], auto_pad="SAME"), {"w": w}
        ),
        "`kernel_shape`=.5. contradicts": lambda: interop.from_onnx(
            make("Conv", ["x", "w"], ["y"], kernel_shape=[5]), {"w": w}
        ),
        "give it as `spatial`": lambda: interop.from_onnx(make("ConvTranspose", ["x", "w"], ["y"], output_shape=[9]), {"w": w}),
        "no `padding_value`='symmetric-include-edge'": lambda: interop.to_onnx(
            interop.from_arrays(np.ones((3, 1, 1)), padding=1, padding_value="symmetric-include-edge")
        ),
    }
    for message, run in wrong.items():
        with pytest.raises(ValueError, match=message):
            run()
