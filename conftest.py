"""Tests and examples run on eight CPU devices, asked for before JAX starts, and in JAX's strict modes."""

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

import jax

# As lineax and Flax test theirs. Another library that mixes ranks or types is called in `tests/conftest.py`'s `lenient`.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
