"""Trains a recipe again and again in forked children that are killed, then once to the end.

Run as a script by test_kill.py: `killing.py RECIPE OUTPUT ...`, for one recipe after the other;
prints for each the kills and the exit code of its last child. Children are killed with SIGKILL: at
chosen fsync calls, that is in the midst of writing files, and at chosen times. A child that runs
to its end returns 0. Forking saves the seconds that importing PyTorch takes.
"""

import json
import os
import random
import signal
import sys
import time
import warnings

from forks import prepare


def kill_at_sync(number):
    """Let this process die at its `number`-th fsync."""
    from foveal.common import files
    from foveal.recipes import claim

    calls = 0
    real = files.sync

    def sync(path):
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        real(path)

    files.sync = claim.sync = sync


def child(recipe, output, sync_number):
    """Train with --resume auto in a forked process; returns its id."""
    process = os.fork()
    if process:
        return process
    try:
        if sync_number:
            kill_at_sync(sync_number)
        from foveal.recipes import run
        from foveal.recipes.config import load_recipe

        run.finish = run.write_run_report = lambda *details: None  # most of a short run's time
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run.train(load_recipe(recipe), output, resume=True)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


SYNCS = (1, 2, 3, 5, 7, 8, 11, 16, 20, 26)
"""The fsync calls to die at: the recipes take turns, so that each is one's."""


def play(recipe, output, syncs):
    """Kill at many moments; (kills, exit code of the child that nobody killed)."""
    killed = 0
    for number in syncs:
        _, status = os.waitpid(child(recipe, output, number), 0)
        killed += os.WIFSIGNALED(status)
    chance = random.Random(0)
    for _ in range(6):
        process = child(recipe, output, None)
        time.sleep(chance.uniform(0.02, 0.3))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        killed += os.WIFSIGNALED(status)
    _, status = os.waitpid(child(recipe, output, None), 0)
    return killed, os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    prepare(sys.argv[1])
    pairs = list(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    found = [play(*pair, SYNCS[i :: len(pairs)]) for i, pair in enumerate(pairs)]
    print(json.dumps(found))
    if any(code for _, code in found):
        sys.exit("a run that was not killed has failed")
