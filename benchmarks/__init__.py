"""What gconv costs, measured so that a sceptic can repeat it.

What is measured:

    cases       one convolution each: the layers of real networks, sweeps, a random sample
    programs    whole programs: of users' issues, networks in Flax and PyTorch, models of other libraries

Who is compared:

    peers       gconv's implementations, lax, Flax, PyTorch, ONNX Runtime, OpenVINO

How it is measured:

    measuring   one stopwatch for all, the machine's limits, the processor or a GPU as the target
    parts       the parts of a run

How it is reported:

    reporting   from the JSON lines in results/ to the tables and plots in report/

A folder imports only folders before it in the order measuring, cases, peers, programs, parts, reporting.
The modules beside the folders are commands:

    python -m benchmarks           measures (`--gpu`: on an NVIDIA GPU)
    python -m benchmarks.report    reports
    python -m benchmarks.tune      what gconv chooses, beside the best that it could have chosen
    python -m benchmarks.compare   two builds of the kernels, side by side in one process
    python -m benchmarks.factors   what the optimizer's factors cost
    python -m benchmarks.scaling   what a training step sends on many devices
"""
