"""Inference of the networks by engines that compile a model beforehand: ONNX Runtime and OpenVINO.

Both are given the PyTorch version of a network as ONNX, and keep its weights in a layout of their own.
"""

import functools
import io
import warnings

import numpy as np

from benchmarks.measuring import machine
from benchmarks.measuring.work import Prepared, timed
from benchmarks.programs import steps


@functools.lru_cache(maxsize=1)
def onnx_model(name: str, batch: int, size: int) -> bytes:
    """The network as ONNX, for input of one shape."""
    import torch

    model, (x, _) = steps.torch_model(name, False).eval(), steps.torch_example(name, batch, size, False)
    for norm in (module for module in model.modules() if isinstance(module, torch.nn.RMSNorm)):  # which opset 17 has not
        norm.forward = lambda x, norm=norm: x * (x.square().mean(-1, keepdim=True) + norm.eps).rsqrt() * norm.weight
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), data, input_names=["input"], output_names=["output"], opset_version=17, dynamo=False)
    return data.getvalue()


def onnxruntime(name: str, batch: int, size: int, *, profile: str = "") -> Prepared:
    """`profile` is the beginning of a file's name: the session, which `keep` holds, writes its profile there when it ends."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = machine.cores(), 1
    options.enable_profiling, options.profile_file_prefix = bool(profile), profile
    data, x = onnx_model(name, batch, size), steps.torch_example(name, batch, size, False)[0].numpy()
    session, seconds = timed(lambda: ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]))
    run = lambda: session.run(["output"], {"input": x})[0]
    return Prepared(run, run, seconds, keep=session)


def openvino(name: str, batch: int, size: int) -> Prepared:
    ov = machine.openvino()
    core = ov.Core()
    data, x = onnx_model(name, batch, size), steps.torch_example(name, batch, size, False)[0].numpy()
    settings = {"INFERENCE_NUM_THREADS": machine.cores(), "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    settings["ENABLE_CPU_PINNING"] = False  # it would keep this process's main thread on one processor, also for the others
    compiled, seconds = timed(lambda: core.compile_model(core.read_model(io.BytesIO(data)), "CPU", settings))
    request = compiled.create_infer_request()
    request.set_input_tensor(tensor := ov.Tensor(x, shared_memory=True))

    def run():
        request.start_async()  # `infer` would copy the results into a dictionary
        request.wait()
        return request.get_output_tensor().data

    return Prepared(run, lambda: np.array(run()), seconds, keep=tensor)
