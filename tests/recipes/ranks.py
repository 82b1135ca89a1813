"""Trains with several processes, forked from one that has imported everything.

Run as a script by test_processes.py: `ranks.py RECIPE` plays each scenario in a folder of its name
and prints a JSON object with the exit codes, stdout and stderr of every process of each. Forking
saves the seconds that importing PyTorch takes.
"""

import importlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

IMPORTED = (
    "foveal.cli.options",
    "foveal.cli.train",
    "foveal.training.trainer",
    "torch.utils.tensorboard",
    "torch._dynamo",  # optimizers and DDP import it
)
"""What each process would spend seconds on."""


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(count, arguments, before=lambda rank: None):
    """Fork `count` processes that run `foveal ARGUMENTS`; their ids."""
    port, processes = free_port(), []
    for rank in range(count):
        process = os.fork()
        if process:
            processes.append(process)
            continue
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        os.environ.update({k: str(v) for k, v in place.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        code = 99
        try:
            code = play(arguments, before)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return processes


def play(arguments, before=lambda rank: None):
    """What each process does: `foveal ARGUMENTS`, with its words in files of its own."""
    rank = int(os.environ["RANK"])
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{name}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    before(rank)
    from foveal.cli import main

    code = main(list(map(str, arguments)))
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def finish(processes, patience=60):
    """Exit codes, outputs and errors; what hangs is killed and counts as None."""
    deadline, codes = time.monotonic() + patience, {}
    while len(codes) < len(processes) and time.monotonic() < deadline:
        for rank, process in enumerate(processes):
            if rank not in codes and (done := os.waitpid(process, os.WNOHANG))[0]:
                codes[rank] = os.waitstatus_to_exitcode(done[1])
        time.sleep(0.02)
    for rank, process in enumerate(processes):
        if rank not in codes:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
    return told([codes.get(rank) for rank in range(len(processes))])


def told(codes):
    """Exit codes, and what each process has printed."""
    ranks = range(len(codes))
    return {
        "codes": codes,
        "out": [Path(f"out-{rank}").read_text() for rank in ranks],
        "err": [Path(f"err-{rank}").read_text() for rank in ranks],
    }


def wait_for(pattern, patience=60):
    deadline = time.monotonic() + patience
    while not list(Path().glob(pattern)) and time.monotonic() < deadline:
        time.sleep(0.02)


def start_and_go_on(recipe):
    """Two begin a run and prolong it, three the next and go on, where config.json is lost."""
    results = [finish(start(2, ["train", recipe]))]
    results.append(finish(start(2, ["train", recipe, "--resume", "auto", "--steps", 30])))
    results.append(finish(start(3, ["train", recipe, "--steps", "6"])))
    Path("runs/tiny-001/config.json").unlink()
    where = ["--output", "runs/tiny-001", "--resume", "auto"]
    results.append(finish(start(3, ["train", recipe, *where, "--steps", 32])))
    return results


def under_torchrun(recipe):
    """Two processes that torchrun's own agent starts, with a share of the batch each."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ["ACCELERATE_USE_CPU"] = "true"
    agent = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="fork",
    )
    arguments = ["train", recipe, "--output", "two", "--model.dropout", 0]
    codes = elastic_launch(agent, play)(arguments)
    return [told([codes[rank] for rank in range(2)])]


def mistakes(recipe):
    """Bad data for all, a folder that is taken, bad data for one."""
    results = [finish(start(2, ["train", recipe, "--data", "missing.txt"]))]
    Path("taken").mkdir()
    Path("taken/config.json").write_text("{}")
    results.append(finish(start(2, ["train", recipe, "--output", "taken"])))

    def blind(rank):
        if rank == 1:
            from foveal.recipes.bytes.kind import Bytes

            def refuse(*details, **more):
                raise ValueError("no data here")

            Bytes.open = refuse

    results.append(finish(start(2, ["train", recipe], blind)))
    return results


def stops(recipe):
    """SIGTERM to the last process alone; then to all, twice, as a launcher does."""
    results = []
    for number in (0, 1):
        os.environ["TORCHELASTIC_RUN_ID"] = "none"
        processes = start(2, ["train", recipe, "--output", f"run{number}", "--steps", 10**6])
        wait_for(f"run{number}/checkpoints/step-*")
        for _ in range(1 + number):
            for process in processes[-1:] if number == 0 else processes:
                os.kill(process, signal.SIGTERM)
            time.sleep(0.05)
        results.append(finish(processes))
    return results


def full_disk(recipe):
    """The first process cannot write its second checkpoint."""

    def fill(rank):
        from foveal.training import checkpoints

        save = checkpoints._save_model

        def refuse(model, folder):
            if "step-00000012" in folder.name:
                raise OSError(28, "No space left on device")
            save(model, folder)

        checkpoints._save_model = refuse

    return [finish(start(2, ["train", recipe, "--output", "run"], fill))]


if __name__ == "__main__":
    for name in IMPORTED:
        importlib.import_module(name)
    run = importlib.import_module("foveal.recipes.run")
    run.finish = run.write_run_report = lambda *details: None  # most of a short run's time
    home, found, environment = Path.cwd(), {}, dict(os.environ)
    for scenario in (start_and_go_on, under_torchrun, mistakes, stops, full_disk):
        folder = home / scenario.__name__
        folder.mkdir()
        os.chdir(folder)
        found[scenario.__name__] = scenario(sys.argv[1])
        os.environ.clear()
        os.environ.update(environment)
    print(json.dumps(found))
