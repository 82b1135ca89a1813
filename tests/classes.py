"""The tests of attention in each class of processors that this one can run, lower ones emulated.

python tests/classes.py [CLASS ...]

The kernel, torch's own operators and oneDNN are all held to a class, each by its own variable.
"""

from __future__ import annotations

import os
import subprocess
import sys

from foveal.common.processor import processor_class, runnable_classes

ENVIRONMENTS = {
    "avx512+bf16": {},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "generic": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "aarch64": {},
}
TESTS = ("tests/ops", "tests/layers", "tests/caches")


def main(wanted: list[str]) -> int:
    """Run the tests in every class; 1 if they fail in one."""
    failed = []
    for name in wanted or runnable_classes():
        if name == "generic" and processor_class() == "aarch64":
            continue
        print(f"\n-- {name}", flush=True)
        env = {**os.environ, **ENVIRONMENTS[name], "FOVEAL_NATIVE": name}
        command = [sys.executable, "-m", "pytest", "-n", "2", "-m", "not slow", *TESTS]
        if subprocess.run(command, env=env).returncode:
            failed.append(name)
    print(f"\nfailed in {', '.join(failed)}" if failed else "\nright in every class")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
