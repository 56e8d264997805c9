"""MATLAB's arrays and files, both ways, and what all converters share."""

from dataclasses import replace

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

    def references(group, values: list):
        kept, number = group.file.require_group("#refs#"), len(group.file["#refs#"])
        write(kept, {f"r{number + i}": value for i, value in enumerate(values)})
        return np.array([[kept[f"r{number + i}"].ref] for i in range(len(values))], h5py.ref_dtype)

    def write(group, values):
        for name, value in values.items():
            if isinstance(value, dict):
                child = group.create_group(name)
                child.attrs["MATLAB_class"] = np.bytes_("struct")
                write(child, value)
            elif isinstance(value, list) and all(isinstance(one, dict) for one in value) and name != "cells":
                child = group.create_group(name)  # an array of structs: for each field references to its values
                child.attrs["MATLAB_class"] = np.bytes_("struct")
                for field in value[0]:
                    child.create_dataset(field, data=references(group, [one[field] for one in value]))
            elif isinstance(value, list):
                dataset = group.create_dataset(name, data=references(group, value))
                dataset.attrs["MATLAB_class"] = np.bytes_("cell")
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
    assert back.config == replace(layer.config, integer_window=False)
    for a, b in zip(jax.tree.leaves(nnx.state(back)), jax.tree.leaves(nnx.state(layer)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert scipy.io.loadmat(tmp_path / "layer.mat")["Weights"].shape == (3, 3, 3, 4, 2)


FACTORS = dict(kernel_learn_rate_factor=2, bias_learn_rate_factor=0, kernel_l2_factor=0.5, bias_l2_factor=3)


def of_matlab(factors: dict) -> dict:
    """Under MATLAB's names."""
    return {
        f"{'Weight' if name.startswith('kernel') else 'Bias'}{'L2' if 'l2' in name else 'LearnRate'}Factor": float(value)
        for name, value in factors.items()
    }


def declared(layer) -> dict:
    return {name: getattr(layer, name) for name in FACTORS}


@pytest.mark.parametrize("save", (scipy.io.savemat, save_as_matlab_7_3), ids=("version 5", "version 7.3"))
@pytest.mark.parametrize("within", (False, True), ids=("variables", "struct"))
def test_factors_and_name_of_a_mat_file(tmp_path, save, within):
    values = PARAMETERS | {name: np.array([[value]]) for name, value in of_matlab(FACTORS).items()}
    if save is scipy.io.savemat:
        values["Name"] = "gconv1"
    save(tmp_path / "layer.mat", {"layer": values} if within else values)
    names = dict(weights="layer.Weights", bias="layer.Bias") if within else {}
    found = interop.load_mat(tmp_path / "layer.mat", **names)
    layer, (module, variables) = found.to_nnx(), found.to_linen()
    assert declared(layer) == declared(module) == FACTORS
    factors = gconv.optim.factors(variables)
    assert factors.learn_rate == {"kernel": 2, "bias": 0} and factors.l2 == {"kernel": 0.5, "bias": 3}
    name = "gconv1" if "Name" in values else ""
    assert (found.name, layer.name, module.name or "") == (name, name, name)
    given = interop.load_mat(tmp_path / "layer.mat", **names, weight_learn_rate_factor=7, name="mine").to_nnx()
    assert (given.kernel_learn_rate_factor, given.name) == (7, "mine")


@pytest.mark.parametrize("linen", [False, True], ids=["nnx", "linen"])
@pytest.mark.parametrize("use_bias", [True, False])
def test_factors_and_name_of_a_layer_travel_both_ways(tmp_path, linen, use_bias):
    made = dict(FACTORS, use_bias=use_bias, name="manual")  # a name that is also a word of MATLAB's
    if linen:
        layer = gconv.linen.GroupedConv(3, 4, 2, **made)
        layer = layer, layer.init(jax.random.key(0), jnp.ones((1, 5, 5, 6)))
    else:
        layer = gconv.nnx.GroupedConv(6, 3, 4, 2, **made, rngs=nnx.Rngs(0))
    interop.save_mat(tmp_path / "layer.mat", layer)
    expected = {name: value for name, value in FACTORS.items() if use_bias or not name.startswith("bias")}
    file = scipy.io.loadmat(tmp_path / "layer.mat")
    assert {name: file[name].item() for name in file if "Factor" in name and "Dilation" not in name} == of_matlab(expected)
    assert file["Name"].item() == "manual"
    for found in (interop.from_gconv(layer), interop.load_mat(tmp_path / "layer.mat", bias="Bias" if use_bias else None)):
        back = found.to_nnx()
        assert back.name == "manual" and {k: v for k, v in declared(back).items() if v is not None} == expected
        again = interop.from_gconv(found.to_linen())
        assert (again.kernel_factor, again.bias_factor, again.name) == (found.kernel_factor, found.bias_factor, "manual")
    assert interop.from_gconv(layer).to_nnx(name="other", kernel_l2_factor=9).kernel_l2_factor == 9


def test_defaults_of_a_mat_file_are_matlabs(tmp_path):
    scipy.io.savemat(tmp_path / "layer.mat", PARAMETERS | {"Name": ""})
    layer = interop.load_mat(tmp_path / "layer.mat").to_nnx()
    assert declared(layer) == dict(zip(FACTORS, (1, 1, 1, 0), strict=True)) and layer.name == ""
    with pytest.raises(ValueError, match="`weight_l2_factor` must be a finite number of at least 0, got -1"):
        interop.from_matlab(PARAMETERS["Weights"], None, weight_l2_factor=-1)


def save_as_matlab_5(path, variables: dict) -> None:
    """As MATLAB writes it, lists as arrays of structs, and as a cell array under the name `cells`."""

    def array(name, values):
        found = np.empty((1, len(values)), object if name == "cells" else [(field, object) for field in values[0]])
        for i, value in enumerate(values):
            found[0, i] = value if name == "cells" else tuple(value.values())
        return found

    def written(name, value):
        if isinstance(value, dict):
            return {inner: written(inner, one) for inner, one in value.items()}
        return array(name, value) if isinstance(value, list) else value

    scipy.io.savemat(path, written("", variables))


@pytest.mark.parametrize("save", (save_as_matlab_5, save_as_matlab_7_3), ids=("version 5", "version 7.3"))
def test_cell_arrays_and_arrays_of_layers(tmp_path, save):
    both = [
        {"Weights": PARAMETERS["Weights"] * (i + 1), "Bias": PARAMETERS["Bias"] - i, "Stride": np.array([[i + 1.0, 1.0]])}
        for i in range(3)
    ]
    relu = {"Alpha": np.array([[0.5]])}
    net = {"cells": [both[0], relu, both[2]]}
    save(tmp_path / "net.mat", {"layers": both, "net": net, "cells": [both[1]["Weights"], relu]})
    load = lambda **names: interop.load_mat(tmp_path / "net.mat", **names)
    for i, one in enumerate(both):
        expected = interop.from_matlab(one["Weights"], one["Bias"], stride=[i + 1, 1])
        names = [f"layers({i + 1}).Weights"] + ([f"net.cells{{{i + 1}}}.Weights"] if i != 1 else [])
        for name in names:
            found = load(weights=name)
            assert found.config == expected.config
            np.testing.assert_array_equal(found.kernel, expected.kernel)
            np.testing.assert_array_equal(found.bias, expected.bias)
    alone = load(weights="cells{1}", bias="layers(2).Bias")
    np.testing.assert_array_equal(alone.kernel, load(weights="layers(2).Weights").kernel)
    wrong = {
        r"'layers' is an array of 3.*'layers\(1\).Weights', 'layers\(2\).Weights', 'layers\(3\).Weights'": "layers.Weights",
        r"'net.cells' is an array of 3. Names that work: 'net.cells\(1\).Weights', 'net.cells\(3\).W": "net.cells.Weights",
        r"'layers' has 3 elements, got 'layers\(4\).Weights'. Indices that work: 1 to 3": "layers(4).Weights",
        r"no variable 'net.cells\{2\}.Weights'; it has 'Alpha'": "net.cells{2}.Weights",
        r"no variable 'layer.Weights'; it has .*'layers' \(1 to 3\), 'net'": "layer.Weights",
        r"'2layers' is no name of a variable. Names that work: 'Weights'": "2layers",
    }
    for message, name in wrong.items():
        with pytest.raises(ValueError, match=message):
            load(weights=name)


def test_several_layers_in_one_file(tmp_path):
    make = lambda i: gconv.nnx.GroupedConv(6, 3, 4, 2, strides=i + 1, name=f"conv{i}", rngs=nnx.Rngs(i))
    layers = [make(i) for i in range(2)]
    interop.save_mat(tmp_path / "named.mat", {layer.name: layer for layer in layers})
    interop.save_mat(tmp_path / "listed.mat", layers)
    for i, layer in enumerate(layers):
        named = interop.load_mat(tmp_path / "named.mat", weights=f"conv{i}.Weights")
        listed = interop.load_mat(tmp_path / "listed.mat", weights=f"layers{{{i + 1}}}.Weights")
        for found in (named, listed):
            assert (found.name, found.config.strides) == (layer.name, (i + 1, i + 1))
            np.testing.assert_array_equal(found.kernel, layer.kernel[...])
            np.testing.assert_array_equal(found.bias, layer.bias[...])


def test_a_file_that_is_not_there_is_named(tmp_path):
    interop.save_mat(tmp_path / "layer1.mat", gconv.nnx.GroupedConv(6, 3, 4, 2, rngs=nnx.Rngs(0)))
    assert interop.load_mat(tmp_path / "layer1").groups == 2, "MATLAB adds the ending by itself, too"
    with pytest.raises(FileNotFoundError, match=r"no file '.*layer\.mat'. Beside it: 'layer1.mat'"):
        interop.load_mat(tmp_path / "layer.mat")
    with pytest.raises(FileNotFoundError, match=r"no file '.*layer\.mat'. There is no folder '.*elsewhere'"):
        interop.load_mat(tmp_path / "elsewhere" / "layer.mat")
    (tmp_path / "text.mat").write_text("Weights = 1")
    with pytest.raises(ValueError, match=r"'.*text\.mat' is no \.mat file that can be read"):
        interop.load_mat(tmp_path / "text.mat")


def test_an_object_of_matlab_says_what_to_save(tmp_path, monkeypatch):
    opaque = np.zeros((1,), [("s0", object), ("arr", object)]).view(scipy.io.matlab.MatlabOpaque)
    monkeypatch.setattr(scipy.io, "loadmat", lambda path: {"layer": opaque})  # which SciPy reads and cannot write
    (tmp_path / "layer.mat").touch()
    with pytest.raises(ValueError, match=r"'layer' is an object.*s.Weights = layer.Weights"):
        interop.load_mat(tmp_path / "layer.mat", weights="layer", bias=None)


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


def test_arrays_of_other_machines_come_in_native_order():
    """Big-endian: as SciPy and h5py read the files of other machines, and JAX takes no array."""
    import onnx
    from flax import linen

    swap = lambda a: a.astype(a.dtype.newbyteorder(">"))
    kernel, bias, x = np.float32(normal(0, 3, 3, 2, 8)), np.float32(normal(1, 8)), np.float32(normal(2, 1, 7, 6, 4))
    expected = interop.from_arrays(kernel, bias, groups=2)
    first, big, small = kernel.transpose(3, 2, 0, 1), swap(kernel), swap(bias)
    module = gconv.linen.GroupedConv((3, 3), 4, 2)
    node = onnx.helper.make_node("Conv", ["x", "w", "b"], ["y"], group=2)
    per_group = interop.kernel_to_matlab(kernel, groups=2), interop.bias_to_matlab(bias, groups=2)
    theirs = linen.Conv(8, (3, 3), padding="VALID", feature_group_count=2)
    makers = {
        "from_arrays": lambda: interop.from_arrays(big, small, groups=2),
        "from_gconv": lambda: interop.from_gconv((module, {"params": {"kernel": big, "bias": small}})),
        "from_torch": lambda: interop.from_torch({"weight": swap(first), "bias": small}, groups=2),
        "from_matlab": lambda: interop.from_matlab(*map(swap, per_group)),
        "from_flax": lambda: interop.from_flax(theirs, {"kernel": big, "bias": small}),
        "from_haiku": lambda: interop.from_haiku({"w": big, "b": small}, padding="VALID", feature_group_count=2),
        "from_onnx": lambda: interop.from_onnx(node, {"w": swap(first), "b": small}),
    }
    for name, make in makers.items():
        found = make()
        assert found.kernel.dtype.isnative and found.bias.dtype.isnative, name
        np.testing.assert_array_equal(found.kernel, kernel, err_msg=name)
        np.testing.assert_array_equal(found.bias, bias, err_msg=name)
        np.testing.assert_array_equal(found.to_nnx()(x), expected.to_nnx()(x), err_msg=name)
    layer = gconv.nnx.GroupedConv(4, (3, 3), 4, 2, kernel_init=big, bias_init=small, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(layer(x), expected.to_nnx()(x))
    with pytest.raises(TypeError, match="floating or complex dtype, got int32"):
        interop.from_torch({"weight": np.ones((2, 2, 3), ">i4")}, bias=False)


def test_arrays_do_not_tell_the_groups():
    with pytest.raises(ValueError, match="`groups` must be given.*groups=1.*groups=8"):
        interop.from_arrays(np.ones((3, 3, 1, 8)))
    assert interop.from_arrays(np.ones((3, 3, 1, 8)), groups=1).in_features == 1
    assert interop.from_arrays(np.ones((3, 3, 1, 8)), groups=8).in_features == 8
    assert interop.from_arrays(np.ones((3, 3, 1, 1))).groups == interop.from_arrays(np.ones((3, 2, 8))).groups == 1


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
