"""What gconv costs, measured so that a sceptic can repeat it.

`python -m benchmarks` runs (`--gpu`: on an NVIDIA GPU), `python -m benchmarks.report` reports.

    cases      the problems: layers of real networks (layers.json), and sweeps
    issues     the programs of users' issues
    peers      who solves them: gconv's implementations, lax, Flax, PyTorch, ONNX Runtime, OpenVINO
    target     what is measured on: the processor, or a GPU
    gpu        a GPU's clock, limits and facts
    limits     what this machine could do at best: copy bandwidth and multiply-add peak
    measure    one stopwatch for all: taking turns in one process, medians
    run        the parts of a run
    models     whole networks in Flax (gconv or nnx.Conv) and in PyTorch, and where a training step's time goes
    memory     peak resident size of a training step, each in a process of its own
    factors    what the optimizer's factors cost
    report     from the JSON lines in results/ to tables and plots
"""
