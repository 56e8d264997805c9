"""The main job, as a user runs it, and the same network at the size of MATLAB's example."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

pytest.importorskip("sklearn", reason="the demo needs the extra 'demo'")
pyplot = pytest.importorskip("matplotlib.pyplot", reason="the demo needs the extra 'demo'")

# Models as users write them, and optax, mix ranks and types.
pytestmark = pytest.mark.usefixtures("lenient")
DEMO = Path(__file__).parent.parent / "notebooks" / "digits.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def demo(folder):
    """What the script leaves: its variables, and in `folder` its files."""
    pyplot.switch_backend("Agg")
    with (
        pytest.MonkeyPatch.context() as patch,
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
    ):
        patch.chdir(folder)
        found = runpy.run_path(str(DEMO))
    pyplot.close("all")
    return found


def test_the_demo_reaches_its_accuracy_and_leaves_its_files(demo, folder):
    assert demo["accuracy"] >= 0.97
    assert np.mean(demo["guesses"] == demo["held_out_labels"]) == pytest.approx(demo["accuracy"])
    for picture in ("digits", "curves", "filters", "predictions"):
        assert (folder / "demo-output" / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "demo-output" / "checkpoint").is_dir()


def test_the_network_at_227_x_227_on_photographs(demo):
    from sklearn.datasets import load_sample_images

    photographs = np.stack(load_sample_images().images).astype(np.float32) / 255
    images = jax.image.resize(photographs, (2, 227, 227, 3), "bilinear")
    model = demo["Network"]((227, 227, 3), 5, rngs=nnx.Rngs(0))
    sizes = {path: parameter.shape for path, parameter in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    assert sizes[("conv", "kernel")] == (3, 3, 3, 32)
    assert sizes[("separable", "depthwise", "kernel")] == (3, 3, 1, 32)
    assert sizes[("separable", "pointwise", "kernel")] == (1, 1, 32, 16)
    assert sizes[("head", "kernel")] == (57 * 57 * 16, 5)
    labels = jnp.array([1, 3])
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    before = nnx.to_flat_state(nnx.state(model, nnx.Param))
    before = {path: np.array(parameter[...]) for path, parameter in before}
    losses = [float(demo["train_step"](model, optimizer, images, labels)[0]) for _ in range(3)]
    assert losses[-1] < losses[0]
    after = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    kernels = [path for path in before if path[-1] == "kernel"]
    assert len(kernels) == 4 and all(not np.array_equal(before[path], after[path][...]) for path in kernels)
    assert bool(jnp.isfinite(demo["predict"](model, images)).all())
