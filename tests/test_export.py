"""A whole model with gconv layers leaves JAX: as StableHLO, and as ONNX that runs in onnxruntime with the same numbers."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from foreign import normal

import gconv


class Network(nnx.Module):
    """Dense, grouped with padding of its own, channel-wise, and a grouped transposed convolution."""

    def __init__(self, groups: int, padding_value=0, *, rngs: nnx.Rngs):
        conv, transposed = gconv.nnx.GroupedConv, gconv.nnx.GroupedConvTranspose
        self.stem = conv(3, 3, 24, 1, strides=2, padding="same", rngs=rngs)
        self.grouped = conv(24, (3, 2), 24 // groups, groups, padding=[1, 0, 0, 1], padding_value=padding_value, rngs=rngs)
        self.channel_wise = conv(24, 3, 2, "channel-wise", dilation=2, padding="same", rngs=rngs)
        self.up = transposed(48, 3, 48 // groups, groups, strides=2, padding=1, output_padding=1, rngs=rngs)
        self.head = nnx.Linear(48, 5, rngs=rngs)

    def __call__(self, x):
        for layer in (self.stem, self.grouped, self.channel_wise, self.up):
            x = nnx.relu(layer(x))
        return self.head(x.mean((1, 2)))


IMAGES = np.float32(normal(0, 2, 11, 8, 3))
# What runs the exported program: a Python that has never heard of gconv.
ELSEWHERE = """
import sys, numpy as np, jax
from jax import export
program = export.deserialize(bytearray(open("model.bin", "rb").read()))
np.save("y.npy", jax.jit(program.call)(np.load("x.npy")))
assert "gconv" not in sys.modules and "flax" not in sys.modules
"""


def test_stablehlo_runs_elsewhere_with_any_batch(tmp_path):
    pytest.importorskip("flatbuffers", reason="jax.export needs flatbuffers to serialize")
    model = Network(3, rngs=nnx.Rngs(0))
    batch = jax.export.symbolic_shape("n, 11, 8, 3")
    program = jax.export.export(jax.jit(lambda x: model(x)), platforms=("cpu", "cuda", "tpu"))(
        jax.ShapeDtypeStruct(batch, jnp.float32)
    )
    (tmp_path / "model.bin").write_bytes(program.serialize())
    np.save(tmp_path / "x.npy", IMAGES)
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), jax.jit(lambda x: model(x))(IMAGES), atol=1e-5)


@pytest.mark.filterwarnings("ignore:'.value' access is now deprecated")  # jax2onnx's own
@pytest.mark.parametrize("groups, padding_value", [(1, 0), (2, 0), (3, 1.5), (8, "circular"), (24, 0)])
def test_onnx_through_jax2onnx(groups, padding_value):
    jax2onnx = pytest.importorskip("jax2onnx", reason="jax2onnx is not installed: pip install gconv[onnx]")
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install gconv[onnx]")
    if not hasattr(jax._src.core, "ClosedJaxpr"):
        pytest.skip(f"jax2onnx asks for jax._src.core.ClosedJaxpr, which jax {jax.__version__} has not")
    model = Network(groups, padding_value, rngs=nnx.Rngs(0))
    exported = jax2onnx.to_onnx(gconv.interop.as_lax(lambda x: model(x)), [IMAGES.shape])
    convolutions = {n.op_type: [] for n in exported.graph.node if "Conv" in n.op_type}
    for node in exported.graph.node:
        if "Conv" in node.op_type:
            convolutions[node.op_type] += [a.i for a in node.attribute if a.name == "group"] or [1]
    assert convolutions == {"Conv": [1, groups, 24], "ConvTranspose": [groups]}
    session = ort.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: IMAGES})
    np.testing.assert_allclose(y, jax.jit(lambda x: model(x))(IMAGES), atol=1e-5)


def test_as_lax_gives_the_same_gradients_and_leaves_no_trace():
    model = Network(4, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    loss = lambda state, x: (nnx.merge(graph, state)(x) ** 2).sum()
    by_lax = gconv.interop.as_lax(jax.value_and_grad(loss, (0, 1)))
    text = str(jax.make_jaxpr(by_lax)(state, IMAGES))
    assert "grouped_conv" not in text and "conv_general_dilated" in text
    expected = jax.jit(jax.value_and_grad(lambda *a: loss(*a), (0, 1)))(state, IMAGES)
    for got, value in zip(*map(jax.tree.leaves, (jax.jit(by_lax)(state, IMAGES), expected)), strict=True):
        np.testing.assert_allclose(got, value, rtol=1e-4, atol=1e-4 * np.abs(value).max())
    assert "grouped_conv" in str(jax.make_jaxpr(lambda x: model(x))(IMAGES))


@pytest.mark.parametrize("strides", (1, 2, 3))
@pytest.mark.parametrize("padding", (0, "same", ((2, 0), (1, 3))), ids=str)
def test_symbolic_heights_and_widths(padding, strides):
    """Values and gradients of two sizes by one program; where the output may be empty, the error names the constraint."""
    scope = ["h >= 3", "w >= 3"] if padding == 0 else []
    b, h, w = jax.export.symbolic_shape("b, h, w", constraints=scope)
    kernel = np.float32(normal(1, 3, 3, 2, 6))

    def run(x, kernel):
        conv = lambda x, k: gconv.grouped_conv(x, k, padding=padding, strides=strides)
        return conv(x, kernel), *jax.grad(lambda *a: (conv(*a) ** 2).sum(), (0, 1))(x, kernel)

    exported = jax.export.export(jax.jit(run))(jax.ShapeDtypeStruct((b, h, w, 6), "float32"), kernel)
    for size in ((1, 9, 8), (3, 5, 12)):
        x = np.float32(normal(2, *size, 6))
        for got, expected in zip(exported.call(x, kernel), run(x, kernel), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    if padding == 0:
        (h,) = jax.export.symbolic_shape("h")
        with pytest.raises(ValueError, match=r"axis 0, whose size h is symbolic.* at least 3.*constraints=\['h >= 3'\]"):
            jax.eval_shape(run, jax.ShapeDtypeStruct((1, h, 8, 6), "float32"), kernel)
