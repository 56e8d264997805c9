"""What a user sees of a layer."""

import warnings

import jax
import jax.numpy as jnp
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
