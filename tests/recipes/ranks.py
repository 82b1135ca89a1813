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

from forks import prepare

IMPORTED = (
    "foveal.cli.evaluate",
    "foveal.cli.train",
    "foveal.parallel.model",
    "foveal.training.sharding",
    "torch.distributed.algorithms.ddp_comm_hooks.default_hooks",
)
"""What each process would spend seconds on, beside what forks.py names."""


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(count, arguments, before=lambda rank: None):
    """Fork `count` processes that run `foveal ARGUMENTS`, or a function of the rank; their ids."""
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

    if callable(arguments):
        return arguments(rank) or 0
    code = main(list(map(str, arguments)))
    for last in AT_END:
        last()
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
    """Three begin a run and go on, where config.json is lost."""
    results = [finish(start(3, ["train", recipe, "--steps", "6"]))]
    Path("runs/tiny-001/config.json").unlink()
    where = ["--output", "runs/tiny-001", "--resume", "auto"]
    results.append(finish(start(3, ["train", recipe, *where, "--steps", 12])))
    return results


def elastic(recipe):
    """Four take five steps in float64, two the next five; the last of them is asked to stop.

    All but the first are in folders of their own, where there is no run.
    """
    options = ["train", recipe, "--output", "run", "--resume", "auto", *ELASTIC]
    options += ["--data", Path(recipe).with_name("texts")]
    return [finish(start(count, options, apart(count, stop))) for count, stop in ((4, 3), (2, 8))]


ELASTIC = ["--steps", 15, "--training.log-every", 5, "--model.dropout", 0, "--data.pack"]
ELASTIC += ["--training.evaluate-every", 5, "--training.batch-size", 8]
ELASTIC += ["--training.checkpoint-every", 0]
AT_END = []
"""What a process does before it ends."""


SHARED = ["--steps", 3, "--training.log-every", 1, "--model.dropout", 0, "--data.context", 37]
SHARED += ["--model.pattern", "Pyramid(4, causal=True)", "--training.loss-chunk", 9]
SHARED += ["--training.activation-checkpointing", "--model.depth", 2]


def shared_rows(recipe):
    """Four in float64, of which two share each row."""

    def before(rank):
        from foveal.recipes.kind import KindTask

        exact(KindTask)

    options = ["train", recipe, "--output", "run", *SHARED, "--parallel.sequence", 2]
    return [finish(start(4, options, before))]


def apart(count, stop):
    """`before`: alone with its files, in float64; the last is asked to stop after a step.

    Each leaves the steps and names of the exchanges for which it has waited since the first step.
    """

    def before(rank):
        from foveal.recipes.kind import KindTask
        from foveal.training.trainer import Trainer

        note, waited = Path(f"waited-{count}-{rank}.json").resolve(), []
        if rank:
            Path(f"apart-{count}-{rank}").mkdir()
            os.chdir(f"apart-{count}-{rank}")
        exact(KindTask)
        take = Trainer.train_step

        def step(trainer):
            note_waiting(waited, trainer)
            loss = take(trainer)
            if trainer.step == stop and rank == count - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return loss

        Trainer.train_step = step
        AT_END.append(lambda: note.write_text(json.dumps(waited)))

    return before


def exact(kind_task):
    """Train in float64."""
    set_up = kind_task._set_up

    def doubled(task):
        set_up(task)
        task.model.double()

    kind_task._set_up = doubled


def note_waiting(waited, trainer):
    """Add [step, what] for each exchange for which a process waits from now on."""
    import torch.distributed as dist

    names = ("all_reduce", "broadcast", "all_gather", "all_gather_object", "barrier")
    if hasattr(dist, "noted"):
        return
    dist.noted = True

    def noting(name, call):
        def noted(*details, **more):
            if not more.get("async_op"):
                waited.append([trainer.step, name])
            return call(*details, **more)

        return noted

    for name in (*names, "broadcast_object_list"):
        setattr(dist, name, noting(name, getattr(dist, name)))


def under_torchrun(recipe):
    """Two processes that torchrun's own agent starts, with a share of the batch each."""
    results = [launch(2, ["train", recipe, "--output", "two", "--model.dropout", 0])]
    return [*results, launch(2, ["evaluate", "two", "--max-bytes", 700, "--json"])]


def launch(count, arguments):
    """What processes do that torchrun's own agent starts."""
    from torch.distributed.elastic.rendezvous import dynamic_rendezvous
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # for a line of a log it reads the sources of all that is imported, a second at each start
    dynamic_rendezvous.get_method_name = lambda depth=0: "a method"
    os.environ["ACCELERATE_USE_CPU"] = "true"
    agent = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="fork",
    )
    codes = elastic_launch(agent, play)(arguments)
    return told([codes[rank] for rank in range(count)])


def many_starts(recipe):
    """Four processes begin a run twenty times, and each goes on once."""
    results = []
    for number in range(20):
        options = ["train", recipe, "--output", f"run{number}", "--resume", "auto"]
        results += [launch(4, [*options, "--steps", steps]) for steps in (2, 4)]
    return results


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
    """SIGTERM to all, twice, as a launcher does."""
    os.environ["TORCHELASTIC_RUN_ID"] = "none"
    processes = start(2, ["train", recipe, "--output", "run", "--steps", 10**6])
    wait_for("run/checkpoints/step-*")
    for _ in range(2):
        for process in processes:
            os.kill(process, signal.SIGTERM)
        time.sleep(0.05)
    return [finish(processes)]


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
    importlib.import_module("torch").set_num_threads(1)
    prepare(sys.argv[1], *IMPORTED)
    run = importlib.import_module("foveal.recipes.run")
    importlib.import_module("foveal.recipes.score").write_run_report = lambda folder: None
    run.finish = run.write_run_report = lambda *details: None  # most of a short run's time
    home, found, environment = Path.cwd(), {}, dict(os.environ)
    usual = (start_and_go_on, elastic, shared_rows, under_torchrun, mistakes, stops, full_disk)
    usual += (importlib.import_module("shards").weights_in_parts,)
    for scenario in (many_starts,) if "many" in sys.argv else usual:
        folder = home / scenario.__name__
        folder.mkdir()
        os.chdir(folder)
        found[scenario.__name__] = scenario(sys.argv[1])
        os.environ.clear()
        os.environ.update(environment)
    print(json.dumps(found))
