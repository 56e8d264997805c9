"""Whether objects of gconv/native/unit.cc define nothing that the linker may share: python symbols.py OBJECT...

Each object is compiled for an instruction set of its own. Of several copies of an inline function the linker keeps one, which
may be for AVX-512 and then runs on a machine without it.
"""

import re
import subprocess
import sys

# Data, not code: an object's table of kernels and what AddressSanitizer adds to it, the address of the C++ runtime's function
# for exceptions, and names of types.
UNITS = "(norm_(baseline|avx2|avx512)|(baseline|avx2|avx512|avx512_short|long_vectors)_(float|double|pairs))"
FINE = re.compile(rf"(__odr_asan(_gen_)?\.?)?_?_ZN5gconv\d+{UNITS}E|DW\.ref\.__gxx_personality_v0|_?_ZT[IS]\w+")


def shared(path: str) -> list[str]:
    """The symbols that an object shows to the linker, other than those."""
    listed = subprocess.run(["nm", "-g", "--defined-only", path], capture_output=True, text=True, check=True).stdout
    names = [line.split()[-1] for line in listed.splitlines() if line]
    if not any("gconv" in name for name in names):
        raise ValueError(f"{path} has no table of kernels.")
    return [name for name in names if not FINE.fullmatch(name)]


if __name__ == "__main__":
    found = {path: names for path in sys.argv[1:] if (names := shared(path))}
    for path, names in found.items():
        print(f"{path} shares {', '.join(names)}", file=sys.stderr)
    print(f"{len(sys.argv) - 1} objects, {len(found)} of which share code")
    sys.exit(bool(found) or len(sys.argv) < 2)
