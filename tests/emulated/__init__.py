"""Kernels of processors that are not at hand."""

CLASSES = ("avx512+bf16", "avx512", "aarch64")
"""What `pytest --emulate` takes."""
