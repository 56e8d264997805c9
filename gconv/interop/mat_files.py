""".mat files of any version as dicts, lists and arrays, and the way to a variable in them as MATLAB writes it."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

PART = re.compile(r"\s*([A-Za-z]\w*)((?:\s*\(\s*\d+\s*\)|\s*\{\s*\d+\s*\})*)\s*")


def read(path: Path) -> dict[str, Any]:
    """The variables of a file: structs as dicts, cell arrays and arrays of structs as lists, in MATLAB's order.

    Raises:
      FileNotFoundError, ValueError: with the path, where there is no file, or none of MATLAB's.
      ImportError: for version 7.3 without mat73.
    """
    from scipy.io import loadmat

    if not path.is_file() and not path.suffix:
        path = path.with_suffix(".mat")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}.{_near(path)}")
    try:
        return {name: plain(value) for name, value in loadmat(path).items() if not name.startswith("__")}
    except NotImplementedError:  # version 7.3 is HDF5
        return _of_hdf5(path)
    except Exception as error:  # of SciPy, which has one of its own for short files
        raise ValueError(f"{str(path)!r} is no .mat file that can be read: {error}") from None


def _of_hdf5(path: Path) -> dict[str, Any]:
    """The variables of a file of version 7.3. mat73 leaves an array of structs as one struct of lists."""
    try:
        import h5py
        from mat73 import loadmat as load_hdf5
    except ImportError:
        raise ImportError(f"{path} is of version 7.3: pip install gconv[matlab], or save it with '-v7'.") from None
    variables = load_hdf5(str(path))
    with h5py.File(path) as file:  # a field of a struct has a class, and one of an array of structs only references
        structs = {name: file[name].values() for name in variables if isinstance(file[name], h5py.Group)}
        arrays = [name for name, fields in structs.items() if not any("MATLAB_class" in field.attrs for field in fields)]
    for name in arrays:
        if isinstance(fields := variables[name], Mapping) and fields:
            variables[name] = [dict(zip(fields, row, strict=True)) for row in zip(*fields.values(), strict=True)]
    return variables


def look_up(variables: Mapping, name: str) -> Any:
    """A variable by its name in MATLAB: `Weights`, `layer.Weights`, `layers(2).Weights`, `net.Layers{3}.Bias`.

    Raises:
      ValueError: where there is none, with what there is.
    """
    value: Any = variables
    so_far = ""
    for part in re.split(r"\.", name):
        if not (found := PART.fullmatch(part)):
            raise ValueError(f"{name!r} is no name of a variable. Names that work: 'Weights', 'layers(2).Weights'.")
        field, indices = found[1], [int(i) for i in re.findall(r"\d+", found[2])]
        if isinstance(value, list):
            there = [i + 1 for i, one in enumerate(value) if isinstance(one, Mapping) and field in one]
            works = ", ".join(f"'{so_far}({i}).{field}'" for i in there) or "none"
            raise ValueError(f"{so_far!r} is an array of {len(value)}. Names that work: {works}.")
        if not isinstance(value, Mapping) or field not in value:
            raise ValueError(f"the file has no variable {name!r}; it has {_there(value)}. A layer without a bias: bias=None.")
        value, so_far = value[field], f"{so_far}.{field}".removeprefix(".")
        for index in indices:
            elements = value if isinstance(value, list) else [value]
            if not 1 <= index <= len(elements):
                count = len(elements)
                raise ValueError(f"{so_far!r} has {count} elements, got {name!r}. Indices that work: 1 to {count}.")
            value, so_far = elements[index - 1], f"{so_far}({index})"
    if type(value).__name__ in ("MatlabOpaque", "MatlabFunction"):
        raise ValueError(
            f"{name!r} is an object, which only MATLAB can read. Save its properties: s.Weights = layer.Weights; s.Bias = "
            "layer.Bias; save('layer.mat', 's')."
        )
    return value


def plain(value: Any) -> Any:
    """SciPy's structs as dicts, its arrays of structs and its cell arrays as lists; arrays as they are."""
    if not isinstance(value, np.ndarray) or type(value) is not np.ndarray:
        return value
    if value.dtype.names:
        structs = [{name: plain(one[name]) for name in value.dtype.names} for one in value.flatten(order="F")]
        return structs[0] if len(structs) == 1 else structs
    return [plain(one) for one in value.flatten(order="F")] if value.dtype == object else value


def _there(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name!r}{_count(found)}" for name, found in value.items()) or "nothing"
    return f"an array of shape {value.shape} there" if hasattr(value, "shape") else "no fields there"


def _count(value: Any) -> str:
    return f" (1 to {len(value)})" if isinstance(value, list) else ""


def _near(path: Path) -> str:
    """The .mat files beside it, or the folder that does not exist."""
    if not path.parent.is_dir():
        return f" There is no folder {str(path.parent)!r}."
    names = [p.name for p in sorted(path.parent.glob("*.mat"))]
    near = difflib.get_close_matches(path.name, names, n=1) or names[:3]
    return f" Beside it: {', '.join(map(repr, near))}." if near else f" No .mat file is in {str(path.parent.resolve())!r}."
