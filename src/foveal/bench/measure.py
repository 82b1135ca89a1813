"""Timing the contenders of a case in turns, and their memory each in a process of its own."""

from __future__ import annotations

import contextlib
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from foveal.bench.case import MODULES, Case, Job
from foveal.bench.machine import synchronize
from foveal.bench.result import Result
from foveal.bench.table import Results


def measure(
    case: Case,
    rounds: int = 5,
    device: str = "cpu",
    limits: dict[str, float] | None = None,
    memory: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Results:
    """All contenders of a case: every run, in turns."""
    found = Results(case)
    for run in case.runs:
        say(f"{case.name}: {run}")
        jobs = _jobs(case, run, device, say)
        times = turns(jobs, rounds, device)
        results = [
            Result(name, run, statistics.median(taken), min(taken), rounds=taken)
            for name, taken in times.items()
        ]
        for result in results:
            _relate(result, results, case, limits or {})
            if memory:
                result.extra_bytes = fresh_memory(case, result.contender, run, device)
        found += results
    return found


def _jobs(case: Case, run: str, device: str, say: Callable[[str], None]) -> dict[str, Job]:
    jobs = {}
    for name in case.contenders:
        try:
            jobs[name] = case.make(name, run, device)
            jobs[name]()  # warms up: compiles, plans, fills caches
        except ModuleNotFoundError as error:
            jobs.pop(name, None)
            say(f"{case.name}: without {name}, {error.name} is not installed")
        except (ValueError, NotImplementedError) as error:
            jobs.pop(name, None)
            say(f"{case.name}: without {name}: {error}")
    return jobs


def turns(jobs: dict[str, Job], rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of each job in each round; the jobs take turns, so that all share what disturbs."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            synchronize(device)
            start = time.perf_counter()
            job()
            synchronize(device)
            times[name].append(time.perf_counter() - start)
    return times


def _relate(result: Result, results: list[Result], case: Case, limits: dict[str, float]) -> None:
    for other in results:
        if other.contender == case.peer:
            result.times_peer = other.seconds / result.seconds
    flops, moved = case.flops.get(result.run), case.bytes.get(result.run)
    if flops:
        result.gflops = flops / result.seconds / 1e9
        if case.dtype in limits:
            result.share_of_products = flops / result.seconds / limits[case.dtype]
    if moved and "bytes" in limits:
        result.share_of_bandwidth = moved / result.seconds / limits["bytes"]


# -- memory ---------------------------------------------------------------------------------------


def peak_memory() -> int:
    """Most bytes that this process has held in memory so far."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux ru_maxrss survives exec: it would count the parent's peak
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    # ru_maxrss is in bytes on macOS and in KiB elsewhere
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def fresh_memory(case: Case, contender: str, run: str, device: str) -> int | None:
    """Bytes that one call of a contender adds to a fresh process; None where it cannot run."""
    options = [",".join(MODULES), case.name, contender, run, device, str(torch.get_num_threads())]
    env: dict[str, Any] = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "foveal.bench.child", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    return int(done.stdout.split()[-1]) if done.returncode == 0 and done.stdout else None


def extra_memory(job: Job, device: str) -> int:
    """Bytes that one call of a job adds to what the process holds."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        job()
        return torch.cuda.max_memory_allocated() - before
    _wake_libraries()
    _forget_peak()
    before = peak_memory()
    job()
    return peak_memory() - before


def _forget_peak() -> None:
    """Count from what is held now: making a job, a mask of all pairs say, may have held more."""
    with contextlib.suppress(OSError):  # Linux alone, and not in every container
        Path("/proc/self/clear_refs").write_text("5")


def _wake_libraries() -> None:
    """Have torch's libraries make the threads and buffers that they keep, whatever the job is."""
    weight = torch.ones(512, 512, requires_grad=True)
    for _ in range(2):
        torch.autograd.grad(torch.bmm(weight[None] @ weight, weight[None]).sum(), weight)
