"""Inference of the networks by engines that compile a model beforehand: ONNX Runtime, OpenVINO, and PyTorch's compiler with
constant weights. All three are given the PyTorch version of a network, and keep its weights in a layout of their own."""

import importlib.util
import io
import warnings
from collections.abc import Callable

import numpy as np

from benchmarks.measuring import machine
from benchmarks.measuring.work import Prepared, timed
from benchmarks.programs import steps


def onnx_model(name: str, batch: int, size: int) -> bytes:
    """The network as ONNX, for input of one shape."""
    import torch

    model, (x, _) = steps.torch_model(name, False).eval(), steps.torch_example(name, batch, size, False)
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), data, input_names=["input"], output_names=["output"], opset_version=17, dynamo=False)
    return data.getvalue()


def onnxruntime(name: str, batch: int, size: int) -> Prepared:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = machine.cores(), 1
    data, x = onnx_model(name, batch, size), steps.torch_example(name, batch, size, False)[0].numpy()
    session, seconds = timed(lambda: ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]))
    run = lambda: session.run(["output"], {"input": x})[0]
    return Prepared(run, run, seconds)


def openvino(name: str, batch: int, size: int) -> Prepared:
    import openvino as ov

    core = ov.Core()
    data, x = onnx_model(name, batch, size), steps.torch_example(name, batch, size, False)[0].numpy()
    settings = {"INFERENCE_NUM_THREADS": machine.cores(), "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled, seconds = timed(lambda: core.compile_model(core.read_model(io.BytesIO(data)), "CPU", settings))
    request = compiled.create_infer_request()
    shared = ov.Tensor(x, shared_memory=True)

    def run():
        request.infer({0: shared})
        return request.get_output_tensor(0).data

    return Prepared(run, lambda: np.array(run()), seconds)


def torch_compiled(name: str, batch: int, size: int) -> Prepared:
    import torch
    from torch._inductor import config

    config.freezing = True
    model = torch.compile(steps.torch_model(name, True).eval())
    x, _ = steps.torch_example(name, batch, size, True)

    def run():
        with torch.inference_mode():
            return model(x)

    _, seconds = timed(run)
    return Prepared(run, lambda: run().numpy(), seconds)


ENGINES: dict[str, tuple[tuple[str, ...], Callable[[str, int, int], Prepared]]] = {
    "ONNX Runtime": (("torch", "onnx", "onnxruntime"), onnxruntime),
    "OpenVINO": (("torch", "onnx", "openvino"), openvino),
    "torch.compile, frozen": (("torch",), torch_compiled),
}


def peers() -> dict[str, Callable[[str, int, int], Prepared]]:
    """Those whose packages are here: functions of a network's name, batch and size."""
    here = lambda packages: all(importlib.util.find_spec(package) for package in packages)
    return {engine: make for engine, (packages, make) in ENGINES.items() if here(packages)}
