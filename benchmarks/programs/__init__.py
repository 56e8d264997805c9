"""What is measured, whole programs.

    issues           the programs of users' issues, with the convolution left open
    equations        convolutions of lax as programs hold them
    libraries        models of other libraries, unchanged
    networks         MobileNetV2, EfficientNet-B0, ResNeXt-50 32x4d, ConvNeXt-T, RegNetX-400MF, a Mamba-2 style block; Flax NNX
    networks_torch   the same with torch.nn, in its layout and with its idioms
    carry            weights from the Flax model into the PyTorch one
    steps            inference and training step of either, compiled, for the stopwatch
    engines          inference by ONNX Runtime and OpenVINO
    contenders       who runs a whole model: all of these by name
    profile          where the time of a call goes
    memory           what a call adds to its process, each in a process of its own

The networks are written once for Flax over any convolution layer, and once by hand for PyTorch. Attribute names agree between
the two, which is how weights find their places. Left out of both: dropout and stochastic depth, which are random and cost next
to nothing.
"""
