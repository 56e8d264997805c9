"""The runtimes that read ONNX: role "y" is a Conv node, role "x" a ConvTranspose; the kernel is a constant, packed beforehand.

Their fixed layout is channels first. There is no operator for the kernel gradient, role "w".
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.measuring import machine
from benchmarks.measuring.work import Prepared, timed
from benchmarks.peers.base import Problem
from gconv.geometry import Geometry

NO_KERNEL_GRADIENT = "ONNX has no operator for the gradient of a kernel"


def model(problem: Problem) -> bytes:
    """The role as a graph of one node, from "input" to "output"."""
    g: Geometry = problem.case.geometry
    source, kernel = problem.arrays["x" if problem.role == "y" else "y"], problem.arrays["w"]
    # Both nodes take it as (G*K, J, *window): a Conv its outputs first, the transpose of one its inputs.
    weights = numpy_helper.from_array(np.ascontiguousarray(kernel.transpose(g.rank + 1, g.rank, *range(g.rank))), "kernel")
    low, high = zip(*g.padding, strict=True)
    options = {"group": g.groups, "strides": g.strides, "dilations": g.dilation, "kernel_shape": g.window}
    if problem.role == "y":
        node = helper.make_node("Conv", ["input", "kernel"], ["output"], pads=[*low, *high], **options)
    else:
        # The convolution may leave a rest at the end of its input: the transpose puts it back as zeros.
        rest = [
            n - ((out - 1) * s + e - lo - hi)
            for n, out, lo, hi, e, s in zip(g.spatial, g.output, low, high, g.effective_window, g.strides, strict=True)
        ]
        options["output_padding"] = rest
        node = helper.make_node("ConvTranspose", ["input", "kernel"], ["output"], pads=[*low, *high], **options)
    shapes = {"input": channels_first(source).shape, "output": channels_first(problem.arrays[problem.role]).shape}
    ends = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    graph = helper.make_graph([node], problem.case.name, [ends["input"]], [ends["output"]], [weights])
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(built)
    return built.SerializeToString()


def channels_first(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(array, -1, 1))


def onnxruntime(problem: Problem, threads: int):
    import onnxruntime as ort

    if problem.role == "w":
        return NO_KERNEL_GRADIENT
    if problem.dtype != "float32":
        return f"its CPU provider has no {problem.dtype} convolution"
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Waiting threads sleep: else they take the processors from the peer whose turn it is.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    data, source = model(problem), channels_first(problem.arrays["x" if problem.role == "y" else "y"])
    session, seconds = timed(lambda: ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]))
    binding = session.io_binding()
    binding.bind_cpu_input("input", source)
    out = ort.OrtValue.ortvalue_from_shape_and_type(session.get_outputs()[0].shape, np.float32)
    binding.bind_ortvalue_output("output", out)

    def run():
        session.run_with_iobinding(binding)
        return out

    return Prepared(run, lambda: np.moveaxis(run().numpy(), 1, -1), seconds, keep=source)


def openvino(problem: Problem, threads: int):
    if problem.role == "w":
        return NO_KERNEL_GRADIENT
    ov = machine.openvino()
    core = ov.Core()
    if problem.dtype != "float32" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return f"it computes in float32 on this processor, which has no {problem.dtype} arithmetic"
    precision = {"float32": "f32", "bfloat16": "bf16"}[problem.dtype]
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
    options["ENABLE_CPU_PINNING"] = False  # it would keep this process's main thread on one processor, also for the others
    data, source = model(problem), channels_first(problem.arrays["x" if problem.role == "y" else "y"])
    program, seconds = timed(lambda: core.compile_model(core.read_model(data, b""), "CPU", options))
    request = program.create_infer_request()
    request.set_input_tensor(tensor := ov.Tensor(source, shared_memory=True))

    def run():
        request.start_async()  # `infer` would copy the results into a dictionary
        request.wait()
        return request.get_output_tensor().data

    return Prepared(run, lambda: np.moveaxis(run(), 1, -1), seconds, keep=tensor)
