"""The tests of attention in each class of processors that this one can run, others emulated.

python tests/classes.py [CLASS ...]

The kernel, torch's own operators and oneDNN are all held to a lower class, each by its own
variable. Of a higher one the kernel alone is run, as `pytest --emulate` does.
"""

from __future__ import annotations

import os
import subprocess
import sys

from emulated.kernels import LOWERED

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
    runnable = runnable_classes()
    above = [name for name in LOWERED if name not in runnable] if "avx2" in runnable else []
    for name in wanted or [*above, *runnable]:
        if name == "generic" and processor_class() == "aarch64":
            continue
        print(f"\n-- {name}{', emulated' if name in above else ''}", flush=True)
        command = [sys.executable, "-m", "pytest", "-n", "2", "-m", "not slow", *TESTS]
        env = dict(os.environ)
        if name in above:
            command += ["--emulate", name]
        else:
            env |= {**ENVIRONMENTS[name], "FOVEAL_NATIVE": name}
        if subprocess.run(command, env=env).returncode:
            failed.append(name)
    print(f"\nfailed in {', '.join(failed)}" if failed else "\nright in every class")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
