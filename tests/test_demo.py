"""The main job, as a user runs it, and the same network at the size of MATLAB's example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

digits = pytest.importorskip("notebooks.digits", reason="the demo needs the extra 'notebooks'")

# Models as users write them, and optax, mix ranks and types.
pytestmark = pytest.mark.usefixtures("lenient")


def test_the_demo_reaches_its_accuracy_and_leaves_its_files(tmp_path, capsys):
    digits.plt.switch_backend("Agg")
    accuracy = digits.main(tmp_path, epochs=40)
    digits.plt.close("all")
    assert accuracy >= 0.97
    assert f"held-out accuracy: {accuracy:.2%} of 360 images" in capsys.readouterr().out
    for picture in ("filters.png", "curves.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "checkpoint").is_dir()


def test_the_network_at_227_x_227_on_photographs():
    from sklearn.datasets import load_sample_images

    photographs = np.stack(load_sample_images().images).astype(np.float32) / 255
    images = jax.image.resize(photographs, (2, 227, 227, 3), "bilinear")
    model = digits.Network((227, 227, 3), 5, rngs=nnx.Rngs(0))
    sizes = {path: parameter.shape for path, parameter in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    assert sizes[("conv", "kernel")] == (3, 3, 3, 32)
    assert sizes[("channel_wise", "kernel")] == (3, 3, 1, 32)
    assert sizes[("pointwise", "kernel")] == (1, 1, 32, 16)
    assert sizes[("head", "kernel")] == (57 * 57 * 16, 5)
    labels = jnp.array([1, 3])
    optimizer = digits.make_optimizer(model, steps=2)
    before = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    losses = [float(digits.train_step(model, optimizer, images, labels)[0]) for _ in range(3)]
    assert losses[-1] < losses[0]
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    kernels = [name for name in ("conv", "channel_wise", "pointwise", "head")]
    assert all(not np.array_equal(before[n]["kernel"], after[n]["kernel"]) for n in kernels)
    assert bool(jnp.isfinite(digits.predict(model, images)).all())
