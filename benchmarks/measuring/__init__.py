"""How it is measured.

    stopwatch     one for all: the candidates take turns in one process, medians
    work          work that is ready for the stopwatch: its times, and whether the results agree
    target        what is measured on: the processor, or a GPU
    gpu           a GPU's clocks, limits and facts
    limits        what this machine could do at best: copy bandwidth and multiply-add peak
    machine       what a result says about where it comes from
    collectives   what a compiled program sends from device to device

All of it is in seconds, bytes and FLOPs; nothing here knows what is compared.
"""
