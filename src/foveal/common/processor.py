"""What the processor at hand can do, and how fast."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path
from typing import Literal

import torch

ProcessorClass = Literal["avx512+bf16", "avx512", "avx2", "generic", "aarch64"]


@functools.lru_cache(maxsize=1)
def processor_class() -> ProcessorClass:
    """The instruction sets that torch's own products use here.

    ATEN_CPU_CAPABILITY=avx2 (or default) makes a processor look like a lower one.
    """
    machine = platform.machine().lower()
    if machine in ("aarch64", "arm64"):
        return "aarch64"
    if machine not in ("x86_64", "amd64"):
        return "generic"
    found = torch.backends.cpu.get_cpu_capability()
    if found == "AVX512":
        return "avx512+bf16" if multiplies_bfloat16() else "avx512"
    return "avx2" if found == "AVX2" else "generic"


@functools.lru_cache(maxsize=1)
def multiplies_bfloat16() -> bool:
    """Whether it multiplies pairs of bfloat16 itself, twice as fast as float32.

    Elsewhere torch converts number by number: some two hundred times slower than float32.
    """
    if platform.machine().lower() in ("aarch64", "arm64"):
        return "bf16" in cpu_flags()
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or _onednn_is_held_back():
        return False
    ask = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(ask and ask())


def fast_dtype(device: torch.device | str, dtype: torch.dtype) -> torch.dtype:
    """`dtype`, or float32 where the device only emulates products in it.

    bfloat16 on a CPU without instructions for it, and float16 on any CPU.
    """
    if torch.device(device).type != "cpu" or dtype not in (torch.float16, torch.bfloat16):
        return dtype
    return dtype if dtype == torch.bfloat16 and multiplies_bfloat16() else torch.float32


# the compiler takes the answer as a constant and does not trace the question
fast_dtype._dynamo_marked_constant = True  # type: ignore[attr-defined]


def cpu_flags() -> set[str]:
    """Names of instruction sets in /proc/cpuinfo; empty where there is none."""
    for line in cpu_info():
        if line.lower().startswith(("flags", "features")):  # x86 and ARM spellings
            return set(line.split(":", 1)[1].split())
    return set()


def processor_name() -> str:
    """What the processor is called, or what kind it is where the system does not say."""
    for line in cpu_info():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cpu_info() -> list[str]:
    """The lines of /proc/cpuinfo, or none."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _onednn_is_held_back() -> bool:
    """Whether the environment keeps oneDNN, which multiplies bfloat16, from AVX-512."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    return (
        bool(limit)
        and limit not in ("ALL", "DEFAULT")
        and "BF16" not in limit
        and ("AMX" not in limit and "AVX10" not in limit)
    )


# what the compiler's -march=x86-64-v3 and -v4 take for granted, in the words of /proc/cpuinfo
_AVX2_NEEDS = {"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"}
_AVX512_NEEDS = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


@functools.lru_cache(maxsize=1)
def runnable_classes() -> tuple[ProcessorClass, ...]:
    """The classes whose programs this processor can run, fastest first, whatever torch uses."""
    machine = platform.machine().lower()
    if machine in ("aarch64", "arm64"):
        return ("aarch64", "generic")
    if machine not in ("x86_64", "amd64"):
        return ("generic",)
    flags = cpu_flags()
    if not flags:  # no /proc: torch's own word
        return _by_torch()
    found: list[ProcessorClass] = ["generic"]
    if flags >= _AVX2_NEEDS:
        found.insert(0, "avx2")
        if flags >= _AVX512_NEEDS:
            found.insert(0, "avx512")
            if "avx512_bf16" in flags:
                found.insert(0, "avx512+bf16")
    return tuple(found)


def _by_torch() -> tuple[ProcessorClass, ...]:
    own = torch.backends.cpu.get_cpu_capability()
    found: list[ProcessorClass] = ["generic"]
    if own in ("AVX2", "AVX512"):
        found.insert(0, "avx2")
    if own == "AVX512":
        found.insert(0, "avx512")
        if multiplies_bfloat16():
            found.insert(0, "avx512+bf16")
    return tuple(found)
