"""Two copies of gconv: a clone in the working directory hides the one that is installed, and its library with it.

The build writes beside a library what it was made of. A copy that has no library, such as a fresh clone, so knows a library of
its own sources, and may load it from where it lies.
"""

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

LIBRARIES = ("libgconv.so", "libgconv.dylib")
SUMS = "libgconv.sha256"  # a line for each source: its SHA-256, two spaces, its path; as `sha256sum` writes it


def library_of(folders: list[Path], paths: Iterable[str] | None = None) -> tuple[Path | None, str]:
    """The library for a copy of gconv, and where there is none a sentence about other copies' ("" if there are no others).

    Args:
      folders: where the copy's sources and its own library lie, which an editable install keeps apart.
      paths: where to look for other copies; those of `import` by default.
    """
    if own := next(filter(None, map(_library_in, folders)), None):
        return own, ""
    sources = next((folder for folder in folders if (folder / "ffi.cc").is_file()), folders[0])
    sentence = ""
    for path in sys.path if paths is None else paths:
        other = Path(path or ".").resolve() / "gconv" / "native"
        library = _library_in(other)
        if library is None or other == sources.resolve():
            continue
        difference = first_difference(sources, other / SUMS)
        if difference is None:
            return library, ""
        sentence = sentence or (
            f"this is the copy of gconv in {sources.parent}, and the one in {other.parent} has a library of other sources "
            f"({difference}). Leave this folder to use that one"
        )
    return None, sentence


def _library_in(folder: Path) -> Path | None:
    return next((path for name in LIBRARIES if (path := folder / name).is_file()), None)


def first_difference(sources: Path, sums: Path) -> str | None:
    """Where these sources are not those that `sums` lists, or None."""
    if not sums.is_file():
        return f"it has no {SUMS}"
    lines = (line.split("  ", 1) for line in sums.read_text().splitlines())
    listed = {name: digest for digest, name in lines}
    here = {path.relative_to(sources).as_posix(): path for kind in ("*.cc", "*.h") for path in sources.rglob(kind)}
    for name in sorted(listed.keys() | here.keys()):
        if name not in here:
            return f"{name} is not here"
        if hashlib.sha256(here[name].read_bytes()).hexdigest() != listed.get(name):
            return f"{name} differs"
    return None
