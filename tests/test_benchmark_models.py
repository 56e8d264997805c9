"""The networks of the benchmarks: as large as their papers say, and equal between gconv, nnx.Conv and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.programs import networks, steps

# Models as users write them, and optax, mix ranks and types.
pytestmark = pytest.mark.usefixtures("lenient")

NAMES = [*networks.NETWORKS]
SIZE = 32


@pytest.mark.parametrize("name", networks.PARAMETERS)
def test_parameters_are_those_of_the_papers(name):
    model = nnx.eval_shape(lambda: networks.NETWORKS[name](networks.gconv_layer, rngs=nnx.Rngs(0)))
    assert networks.parameters(model) == networks.PARAMETERS[name]


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_equal(name):
    outputs = {conv: steps.flax_inference(name, layer, 2, SIZE).result() for conv, layer in networks.CONVS.items()}
    want = outputs["nnx.Conv"]
    assert want.shape == ((2, SIZE, 256) if name == "mamba" else (2, 1000)) and np.ptp(want) > 0.1
    np.testing.assert_allclose(outputs["gconv"], want, rtol=0, atol=2e-5 * np.abs(want).max())
    if "PyTorch contiguous" in steps.peers("inference"):
        got = steps.torch_inference(name, 2, SIZE, channels_last=True).result()
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


# In float64, because batch norm over few values magnifies roundings. Two networks stand for all: the others' layers are theirs.
@pytest.mark.parametrize("name", ["mobilenet_v2", "mamba"])
def test_a_training_step_is_the_same(name, x64):
    found = {}
    for conv, layer in networks.CONVS.items():
        step, state = steps.training_step(name, layer)
        x, labels = steps.example(name, 4, 64)
        state, x = jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, (state, jnp.asarray(x)))
        found[conv] = jax.tree.leaves(jax.jit(step)(*state, x, jnp.asarray(labels, x.dtype if name == "mamba" else jnp.int32)))
    assert len(found["gconv"]) > 10 and found["gconv"][0].dtype == jnp.float64
    for got, want in zip(found["gconv"], found["nnx.Conv"], strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-9)


def test_a_training_step_trains():
    run = steps.flax_training("mamba", networks.gconv_layer, 2, SIZE).run
    losses = [float(run()[0]) for _ in range(20)]
    assert losses[-1] < losses[0]


def test_pytorch_trains_alike():
    if "PyTorch contiguous" not in steps.peers("training"):
        pytest.skip("PyTorch is not installed")
    ours = steps.flax_training("mamba", networks.gconv_layer, 2, SIZE).run
    theirs = steps.torch_training("mamba", 2, SIZE, channels_last=False).run
    for _ in range(3):
        assert float(ours()[0]) == pytest.approx(theirs().item(), rel=1e-4)
