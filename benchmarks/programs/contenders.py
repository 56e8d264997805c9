"""Who runs a whole model: functions of a network's name, batch and size, which answer with work or say why there is none.

JAX runs the same `nnx.Conv` model in each case, without a change to its code:

    nnx.Conv               JAX alone
    nnx.Conv installed     with `gconv.install()`
    nnx.Conv fused         installed, and `gconv.fuse` of the model, whose weights are constants as the engines' are: inference
    nnx.Conv accelerated   installed, and `gconv.accelerate` of the model: training

The others are PyTorch in either memory format, PyTorch's compiler (channels last; in inference with frozen weights), and for
inference the engines. Everyone's training step computes in float32 or bfloat16.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable
from functools import partial

import gconv
from benchmarks.measuring.work import Prepared
from benchmarks.programs import engines, networks, steps

Maker = Callable[[str, int, int], Prepared | str]

MODES = ("inference", "training")
ALONE = "nnx.Conv"
OURS = {"inference": "nnx.Conv fused", "training": "nnx.Conv accelerated"}


def of(mode: str, dtype: str = "float32") -> dict[str, Maker]:
    """All who run a model for inference, in float32, or for training, computing in `dtype`, by name."""
    return INFERENCE if mode == "inference" else _training(dtype)


def _needs(make: Callable[..., Prepared], *packages: str, compiler: bool = False) -> Maker:
    def made(name: str, batch: int, size: int) -> Prepared | str:
        for package in packages:
            if importlib.util.find_spec(package) is None:
                return f"{package} is not installed"
        if compiler and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
            return "there is no C++ compiler, which torch.compile needs"
        return make(name, batch, size)

    return made


def _pytorch(make: Callable[..., Prepared]) -> dict[str, Maker]:
    return {
        "PyTorch contiguous": _needs(partial(make, channels_last=False), "torch"),
        "PyTorch channels_last": _needs(partial(make, channels_last=True), "torch"),
        "PyTorch compiled": _needs(partial(make, channels_last=True, compiled=True), "torch", compiler=True),
    }


def _flax(make: Callable[..., Prepared], **options) -> Maker:
    return lambda name, batch, size: make(name, networks.flax_layer, batch, size, **options)


INFERENCE: dict[str, Maker] = {
    ALONE: _flax(steps.flax_inference),
    "nnx.Conv installed": _flax(steps.flax_inference, around=gconv.accelerated),
    "nnx.Conv fused": _flax(
        steps.flax_inference, around=gconv.accelerated, change=partial(gconv.fuse, frozen=True), frozen=True
    ),
    **_pytorch(steps.torch_inference),
    "ONNX Runtime": _needs(engines.onnxruntime, "onnxruntime", "onnx", "torch"),
    "OpenVINO": _needs(engines.openvino, "openvino", "onnx", "torch"),
}


def _training(dtype: str) -> dict[str, Maker]:
    flax = partial(_flax, steps.flax_training, dtype=dtype)
    return {
        ALONE: flax(),
        "nnx.Conv installed": flax(around=gconv.accelerated),
        "nnx.Conv accelerated": flax(around=gconv.accelerated, change=gconv.accelerate),
        **_pytorch(partial(steps.torch_training, dtype=dtype)),
    }
