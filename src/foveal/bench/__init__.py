"""Timing cases beside their peers: `foveal bench`, and benchmarks/run.py in the repository."""

from foveal.bench import machine, table
from foveal.bench.case import Case, find
from foveal.bench.measure import Result, measure

__all__ = ["Case", "find", "measure", "Result", "machine", "table"]
