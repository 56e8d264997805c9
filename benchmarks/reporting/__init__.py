"""How it is reported: from rows of results to words, tables and plots.

    numbers        what is read off the rows
    tables         the tables of processors
    model_tables   the tables of whole models
    gpu_tables     the tables of GPUs
    drawing        what the plots share
    model_plots    the plots of whole models
    plots          all plots
    document       the whole report, and what of it stands in docs/performance.md, docs/index.md and README.md

`python -m benchmarks.report` is the command.
"""
