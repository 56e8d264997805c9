"""How it is reported: from rows of results to words, tables and plots.

    numbers      what is read off the rows
    tables       the tables of processors
    gpu_tables   the tables of GPUs
    plots        the plots
    document     the whole report, and what of it stands in docs/performance.md

`python -m benchmarks.report` is the command.
"""
