"""Which interpreter the environments of the Makefile are made of: `make PYTHON=...` names another.

    python3 benchmarks/fastest_python.py

The first python3 of PATH, unless another one of the same version is clearly faster: one that was
built without profiles, as pyenv builds it by default, takes a tenth to a third longer for what is
Python alone (docs/decisions/0025-the-faster-of-two-interpreters.md).
"""

import os
import subprocess
import sys

CLEARLY = 0.85
TRIAL = """
import ensurepip, os, sys, sysconfig, time
header = os.path.join(sysconfig.get_path("include"), "Python.h")  # packages are built against it
assert sys.version_info >= (3, 11) and os.path.exists(header)

class Pair:
    def __init__(self, one):
        self.one = {one: [one, str(one)]}

    def of(self, other):
        return len(self.one.get(other, ())) + isinstance(other, int)

def trial():
    began = time.process_time()
    sum(Pair(number).of(number % 7) for number in range(20000))
    return time.process_time() - began

trial()
print(sys.version_info[:2], min(trial() for _ in range(7)), sys.executable, sep="|")
"""


def tried(path):
    """(version, seconds, path) of an interpreter, or None if it cannot serve."""
    command = [path, "-I", "-c", TRIAL]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if done.returncode:
        return None
    version, seconds, name = done.stdout.strip().split("|")
    return version, float(seconds), name


def main():
    folders = os.environ.get("PATH", "").split(os.pathsep)
    paths = dict.fromkeys(os.path.join(folder, "python3") for folder in folders if folder)
    found = [tried(path) for path in paths if os.access(path, os.X_OK)]
    found = [one for one in found if one]
    if not found:
        sys.exit("no Python 3.11 or newer with its headers and venv")
    version, seconds, path = found[0]
    alike = [one for one in found if one[0] == version and one[1] < CLEARLY * seconds]
    print(min(alike, key=lambda one: one[1])[2] if alike else path)


if __name__ == "__main__":
    main()
