"""The rows of `gconv.backends.choice` about matrix products: whether native computes them, as convolutions of one pixel.

FUSED_MATRIX   those that `gconv.fuse` could let take in what follows them
LINEAR         those of layers that `gconv.accelerate` changes, together with their gradients
"""

from gconv.backends.row import always, leave, take

SINGLE_OR_HALF = ("float32", "bfloat16", "float16")

# Where the numbers come from.
MATRICES = "products with a bias, 2 threads of a Zen 4, 2026-11-28, native's speed over XLA's"
LINEARS = "x @ matrix and its gradients y, x, w, 2 threads of a Zen 4, 2026-11-29, native's speed over XLA's"
FROZEN = "products with a bias, 2 threads of a Zen 3, 2026-11-29, native's speed over XLA's with a constant"
CHAINS = "20 layers one after another, 2 threads of a Zen 4, 2026-11-28, native's speed over XLA's"

FUSED_MATRIX = (
    leave(
        lambda p: p.type not in SINGLE_OR_HALF,
        "matrix products were measured in float32 and half precision, not in {p.type}",
        "no rows of another type",
    ),
    leave(
        lambda p: not p.products,
        "there is nothing to compute",
        "arrays without numbers, which the kernels are not called for",
    ),
    leave(
        lambda p: p.results < 8,
        "its kernels work along channels, and {p.results} of them leave its vectors empty",
        f"{CHAINS} of 4 channels, with gelu: 0.5 to 0.8 with 16 to 64 rows; 1.0 to 1.3 of 8 channels with 8 to 32 rows",
    ),
    leave(
        lambda p: p.sources > 3200 and p.type == "float32",
        "sums over {p.sources} numbers take so long that nothing is gained by what follows them",
        f"{MATRICES}, 16 to 1,568 rows: 0.90 to 1.04 with 4,000 sources, 0.97 to 1.12 with 3,136",
    ),
    take(
        lambda p: p.frozen and p.type == "float32" and p.pairs > 1 << 19,
        "a large matrix that is packed once is read faster than XLA reads it, and by all threads",
        f"{FROZEN}, one to 15 rows, 512 to 3,072 sources, 768 to 2,048 results: 0.97 to 1.9, 1.5 in the mean; 0.90 to 2.0 "
        "with 2^18 to 2^19 numbers",
    ),
    leave(
        lambda p: p.pixels < (16 if p.type == "float32" else 128),
        "XLA is faster at products of few rows: {p.pixels}, fewer than 16, in half precision 128",
        f"{CHAINS}, 4 to 256 channels: 0.7 to 1.5 with one row, 0.8 to 2.5 with 2 to 8, 0.9 to 2.7 with 16 to 64; in half "
        "precision by AVX2 or AVX-512 0.82 with 16 rows, 0.88 with 64",
    ),
    take(
        always,
        "its kernels finish the results while they hold them",
        f"{MATRICES}, 49 to 6,272 rows, 32 to 3,136 sources: 0.92 to 3.4, most of all with few channels and few rows; in half "
        "precision see the rows of linear layers",
    ),
)

LINEAR = (
    leave(
        lambda p: p.platform != "cpu" or p.type not in SINGLE_OR_HALF,
        "matrix products were measured on CPU in float32 and half precision, not on {p.platform} in {p.type}",
        "no rows of others",
    ),
    leave(
        lambda p: p.pixels < 128 or min(p.sources, p.results) < 8,
        "XLA is faster at products of few rows ({p.pixels}, fewer than 128) or columns ({p.g.channels} -> {p.g.filters})",
        f"{LINEARS}: 0.34 to 1.4 with 8 and 16 rows in float32, 0.51 to 1.2 in float16; 0.63 to 1.5 with 64 rows; 1.02 to 1.52 "
        "with 128 rows of 64 -> 64 in all three",
    ),
    leave(
        lambda p: p.type == "float32" and p.pixels**2 < 9 * p.pairs,
        "XLA is as fast at matrices that are large for {p.pixels} rows",
        f"{LINEARS}, float32, 392 and 1,568 rows, 384 -> 1536 and 768 -> 3072 and back: 0.78 to 1.2, 0.96 in geometric mean",
    ),
    take(
        always,
        "its kernels are faster than XLA's matrix products of many rows, and of half precision",
        f"{LINEARS}, 1,000 to 25,088 rows, 32 to 768 channels, float32: 0.94 to 2.2. 392 to 25,088 rows, 32 to 3,072 channels, "
        "bfloat16 by AVX512-BF16: 1.9 to 3.8; float16: 0.99 to 2.0; bfloat16 by AVX-512 1.0 to 1.8 and by AVX2 0.8 to 1.6",
    ),
)
