"""What a user sees of a layer."""

import warnings

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

import gconv

# MATLAB's listing of groupedConvolution2dLayer(11, 10, 3, 'Name', 'gconv1'), before it has seen an input.
MATLAB = """\
GroupedConvolution2DLayer with properties:

                  Name: 'gconv1'

   Hyperparameters
            FilterSize: [11 11]
             NumGroups: 3
   NumChannelsPerGroup: 'auto'
    NumFiltersPerGroup: 10
                Stride: [1 1]
        DilationFactor: [1 1]
           PaddingMode: 'manual'
           PaddingSize: [0 0 0 0]

   Learnable Parameters
               Weights: []
                  Bias: []
"""


def test_a_linen_layer_shows_matlabs_listing():
    layer = gconv.linen.GroupedConv(11, 10, 3, name="gconv1")
    assert str(layer) == gconv.describe(layer) == MATLAB


def test_an_nnx_layer_shows_its_parameters():
    text = str(gconv.nnx.GroupedConv(6, 11, 10, 3, name="gconv1", rngs=nnx.Rngs(0)))
    expected = MATLAB.replace("'auto'", "2").replace("Weights: []", "Weights: [11x11x2x10x3 single]")
    assert text == expected.replace("Bias: []", "Bias: [1x1x10x3 single]")


def test_describe_takes_linen_parameters():
    layer = gconv.linen.GroupedConv(3, 2, "channel-wise", padding=[1, 2, 3, 4], padding_value="replicate")
    params = layer.init(jax.random.key(0), jnp.ones((1, 5, 5, 4)))["params"]
    text = gconv.describe(layer, params)
    for line in ("NumGroups: 4", "PaddingSize: [1 2 3 4]", "PaddingValue: 'replicate'", "Weights: [3x3x1x2x4 single]"):
        assert line in text, line
    assert "NumGroups: 'channel-wise'" in str(layer)


def stacked(*sizes, kind="GroupedConv", out_axes=0, **options):
    """A stack of layers of 6 channels, as `nnx.vmap` makes it, one more axis for each size."""

    def make(keys):
        return getattr(gconv.nnx, kind)(6, (3, 5), 4, 2, **options, rngs=nnx.Rngs(keys))

    for size in reversed(sizes):
        make = nnx.vmap(make, in_axes=0, out_axes=out_axes, axis_size=size)
    return make(jax.random.split(jax.random.key(0), sizes))


def test_a_stack_of_layers_shows_the_size_of_one_and_how_many():
    one = str(gconv.nnx.GroupedConv(6, (3, 5), 4, 2, rngs=nnx.Rngs(0)))
    assert "Weights: [3x5x3x4x2 single]" in one and "Bias: [1x1x4x2 single]" in one
    for sizes, times in (((7,), "7"), ((3, 2), "3x2")):
        text = str(stacked(*sizes))
        assert text == one.replace("Weights: [", f"Weights: {times} x [").replace("Bias: [", f"Bias: {times} x [")
    text = str(stacked(7, kind="GroupedConvTranspose", param_dtype="bfloat16"))
    assert "Weights: 7 x [3x5x4x3x2 bfloat16]" in text and "NumChannelsPerGroup: 3" in text
    assert "Weights: [3x5x3x8x7 single]" in str(stacked(7, out_axes=-1)), "along another axis: as it is"


def test_a_stack_of_linen_layers_shows_the_size_of_one():
    module = gconv.linen.GroupedConv(3, 2, "channel-wise")
    many = nn.vmap(gconv.linen.GroupedConv, variable_axes={"params": 0}, split_rngs={"params": True})(3, 2, "channel-wise")
    params = many.init(jax.random.key(0), jnp.ones((7, 1, 5, 5, 4)))["params"]
    text = gconv.describe(module, params)
    for line in ("NumGroups: 4", "Weights: 7 x [3x3x1x2x4 single]", "Bias: 7 x [1x1x2x4 single]"):
        assert line in text, line


def test_padding_mode_and_size():
    def layer(**options):
        return gconv.nnx.GroupedConv(2, (3, 4), 1, 1, rngs=nnx.Rngs(0), **options)

    assert (layer().padding_mode, layer().padding_size) == ("manual", (0, 0, 0, 0))
    assert layer(padding=[1, 2]).padding_size == (1, 1, 2, 2)
    assert layer(padding="same").padding_mode == "same"
    assert layer(padding="same").padding_size == (1, 1, 1, 2), "at stride 1 the input's size does not matter"
    assert layer(padding="same", strides=2).padding_size is None, "known when the input is"


def test_treescope_and_tabulate_keep_working():
    layer = gconv.nnx.GroupedConv(4, 3, 1, 2, rngs=nnx.Rngs(0))
    assert "learn_rate_factor=1" in repr(layer)
    assert "GroupedConv" in nnx.tabulate(layer, jnp.ones((1, 5, 5, 4)))
    assert "params" in gconv.linen.GroupedConv(3, 1, 2).tabulate(jax.random.key(0), jnp.ones((1, 5, 5, 4)))
    import treescope

    with warnings.catch_warnings():  # treescope walks all of NumPy, deprecated corners included
        warnings.simplefilter("ignore", DeprecationWarning)
        assert "GroupedConv(" in treescope.render_to_text(layer)
