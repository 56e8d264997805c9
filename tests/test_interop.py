"""MATLAB's arrays and files, both ways, and what all converters share."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import scipy.io
from flax import nnx
from foreign import normal

import gconv
from gconv import interop


@pytest.mark.parametrize("window", [(3,), (3, 5), (2, 3, 4)])
@pytest.mark.parametrize("groups, channels, filters", [(1, 3, 2), (4, 1, 1), (3, 2, 5)])
def test_kernel_round_trip_and_meaning(window, groups, channels, filters):
    weights = np.random.default_rng(0).normal(size=(*window, channels, filters, groups))
    kernel = interop.kernel_from_matlab(weights)
    assert kernel.shape == (*window, channels, groups * filters)
    for group in range(groups):
        for f in range(filters):
            np.testing.assert_array_equal(kernel[..., group * filters + f], weights[..., f, group])
    np.testing.assert_array_equal(interop.kernel_to_matlab(kernel, groups=groups), weights)
    np.testing.assert_array_equal(interop.kernel_from_matlab(jnp.asarray(weights)), kernel.astype(np.float32))


def test_bias_round_trip_and_meaning():
    bias = np.arange(12.0).reshape(1, 1, 4, 3)
    flat = interop.bias_from_matlab(bias)
    assert flat.tolist() == [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]
    np.testing.assert_array_equal(interop.bias_to_matlab(flat, groups=3), bias)
    np.testing.assert_array_equal(interop.bias_from_matlab(bias[0, 0]), flat)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(3, 3, 2\).*trailing axes"):
        interop.kernel_from_matlab(np.ones((3, 3, 2)))
    with pytest.raises(ValueError, match=r"kernel shape \(3, 3, 2, 8\), groups=3"):
        interop.kernel_to_matlab(np.ones((3, 3, 2, 8)), groups=3)
    with pytest.raises(ValueError, match="filters, groups"):
        interop.bias_from_matlab(np.ones(4))
    with pytest.raises(ValueError, match="groups=3"):
        interop.bias_to_matlab(np.ones(4), groups=3)


# --- MATLAB's arrays and files ---------------------------------------------------------------------------------------

PARAMETERS = {"Weights": normal(0, 3, 2, 2, 4, 3).astype(np.float32), "Bias": normal(1, 1, 1, 4, 3).astype(np.float32)}


def save_as_matlab_7_3(path, variables: dict) -> None:
    """As MATLAB writes it: HDF5 behind 512 bytes, axes in the opposite order, a struct as a group."""
    h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install gconv[matlab]")
    pytest.importorskip("mat73", reason="mat73 is not installed: pip install gconv[matlab]")

    def write(group, values):
        for name, value in values.items():
            if isinstance(value, dict):
                child = group.create_group(name)
                child.attrs["MATLAB_class"] = np.bytes_("struct")
                write(child, value)
            else:
                dataset = group.create_dataset(name, data=value.T)
                dataset.attrs["MATLAB_class"] = np.bytes_({"f4": "single", "f8": "double"}[value.dtype.str[1:]])

    with h5py.File(path, "w", userblock_size=512) as file:
        write(file, variables)
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")


@pytest.mark.parametrize("save", (scipy.io.savemat, save_as_matlab_7_3), ids=("version 5", "version 7.3"))
@pytest.mark.parametrize("within", (False, True), ids=("variables", "struct"))
def test_mat_files(tmp_path, save, within):
    x = normal(2, 2, 7, 8, 6)
    values = PARAMETERS | {"Stride": np.array([[2.0, 1.0]]), "PaddingSize": np.array([[1.0, 0.0, 2.0, 1.0]])}
    save(tmp_path / "layer.mat", {"layer": values} if within else values)
    names = dict(weights="layer.Weights", bias="layer.Bias") if within else {}
    found = interop.load_mat(tmp_path / "layer.mat", **names)
    kernel, bias = PARAMETERS["Weights"].swapaxes(-1, -2).reshape(3, 2, 2, 12), PARAMETERS["Bias"][0, 0].T.ravel()
    expected = oracle.conv(x, kernel, bias, groups=3, strides=(2, 1), pads=((1, 0), (2, 1)), dilation=(1, 1))
    np.testing.assert_allclose(found(x), expected, atol=1e-5)
    assert interop.load_mat(tmp_path / "layer.mat", **names, stride=3).config.strides == (3, 3)


@pytest.mark.parametrize("filters, groups", [(4, 1), (1, 1), (1, 5)])
def test_axes_that_matlab_drops_come_back(tmp_path, filters, groups):
    weights, bias = normal(0, 3, 3, 2, filters, groups), normal(1, 1, 1, filters, groups)
    trimmed = {}
    for name, value in {"Weights": weights, "Bias": bias}.items():
        while value.ndim > 2 and value.shape[-1] == 1:
            value = value[..., 0]
        trimmed[name] = value
    scipy.io.savemat(tmp_path / "layer.mat", trimmed)
    found, expected = interop.load_mat(tmp_path / "layer.mat"), interop.from_matlab(weights, bias)
    assert found.config == expected.config
    np.testing.assert_array_equal(found.kernel, expected.kernel)
    np.testing.assert_array_equal(found.bias, expected.bias)


@pytest.mark.parametrize(
    "options",
    [
        dict(strides=(2, 1), padding="same", dilation=2),
        dict(padding=[0, 1, 2, 3], padding_value="symmetric-include-edge", use_bias=False),
        dict(padding=1, padding_value=0.5),
    ],
    ids=str,
)
def test_a_layer_in_a_mat_file_comes_back_whole(tmp_path, options):
    layer = gconv.nnx.GroupedConv(6, 3, 4, 2, **options, bias_init="narrow-normal", rngs=nnx.Rngs(0))
    interop.save_mat(tmp_path / "layer.mat", layer)
    found = interop.load_mat(tmp_path / "layer.mat", bias="Bias" if layer.use_bias else None)
    back = found.to_nnx()
    assert back.config == layer.config
    for a, b in zip(jax.tree.leaves(nnx.state(back)), jax.tree.leaves(nnx.state(layer)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert scipy.io.loadmat(tmp_path / "layer.mat")["Weights"].shape == (3, 3, 3, 4, 2)


def test_what_is_wrong_with_a_file_is_named(tmp_path):
    scipy.io.savemat(tmp_path / "layer.mat", {"Weights": PARAMETERS["Weights"], "B": np.ones(3), "layer": {"Bias": np.ones(3)}})
    load = lambda **options: interop.load_mat(tmp_path / "layer.mat", **options)
    wrong = {
        "no variable 'Bias'; it has 'Weights', 'B', 'layer'.*bias=None": lambda: load(),
        "no variable 'layer.Weights'; it has 'Bias'": lambda: load(weights="layer.Weights", bias=None),
        r"must have 4 filters x 3 groups, got shape \(1, 3\)": lambda: load(bias="B"),
        "window_axes=1 has 4": lambda: load(bias=None, window_axes=1),
        "no grouped transposed convolution": lambda: interop.to_matlab(
            interop.from_arrays(np.ones((3, 1, 1)), transposed=True)
        ),
        'no padding="same_lower" with strides': lambda: interop.save_mat(
            tmp_path / "x.mat", interop.from_arrays(np.ones((3, 1, 1)), strides=2, padding="same_lower")
        ),
    }
    for message, run in wrong.items():
        with pytest.raises(ValueError, match=message):
            run()


# --- what all converters share ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, arguments", [("GroupedConv", (6, 3, 4, 2)), ("GroupedConvTranspose", (4, 3, 2, "channel-wise"))]
)
def test_a_convolution_is_the_layers_of_both_flax_apis(kind, arguments):
    x = np.float32(normal(3, 2, 7, 8, arguments[0]))
    layer = getattr(gconv.nnx, kind)(*arguments, strides=2, padding="same", bias_init="narrow-normal", rngs=nnx.Rngs(0))
    found = interop.from_gconv(layer)
    module, variables = found.to_linen()
    again = interop.from_gconv((module, variables))
    assert again.config == found.config == interop.from_gconv(found).config
    assert again.in_features == layer.in_features
    y = layer(x)
    for result in (found(x), found.to_nnx()(x), module.apply(variables, x)):
        np.testing.assert_array_equal(result, y)
    assert found.to_nnx(implementation="lax", kernel_l2_factor=2).kernel.l2_factor == 2


def test_a_float64_kernel_keeps_its_type_where_jax_has_it(x64):
    found = interop.from_matlab(normal(0, 3, 1, 2, 4), None)
    assert found.to_nnx().kernel.dtype == found(normal(1, 8, 4)).dtype == np.float64


def test_what_is_no_gconv_layer_is_named():
    wrong = {
        "one of gconv.nnx.*got Conv": lambda: interop.to_matlab(nnx.Conv(1, 1, (3,), rngs=nnx.Rngs(0))),
        "give the pair": lambda: interop.from_gconv(gconv.linen.GroupedConv(3, 1, 1)),
        "`kernel` is missing": lambda: interop.from_gconv((gconv.linen.GroupedConv(3, 1, 1), {"params": {}})),
        "does not fit the layer": lambda: interop.from_gconv(
            (gconv.linen.GroupedConv(3, 1, 1, use_bias=False), {"kernel": np.ones((5, 1, 1))})
        ),
        "1, 2 or 3 window axes": lambda: interop.from_arrays(np.ones((3, 3))),
        "`groups` must divide": lambda: interop.from_arrays(np.ones((3, 1, 4)), groups=3),
        "must be an array, got list": lambda: interop.from_matlab([1.0], None),
        "one size per spatial axis, 1": lambda: interop.from_arrays(np.ones((3, 1, 1)), padding="same").explicit((3, 3)),
    }
    for message, run in wrong.items():
        with pytest.raises((ValueError, TypeError), match=message):
            run()
