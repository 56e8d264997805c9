"""What is measured, one convolution at a time.

    convolution   a case: one convolution of given sizes
    layers        those of real networks, in layers.json
    sample        a seeded sample of every kind, and single cases that were once chosen badly
    sweeps        one size of a layer grows, the others stay

Whole programs are in `benchmarks.programs`.
"""
