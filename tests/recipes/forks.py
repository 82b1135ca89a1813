"""Scripts that fork many processes, each of which trains: what they share, and how they are run.

A process that imports torch and foveal and reads its options spends seconds on that; a fork of one
that has done so spends none.
"""

import gc
import importlib
import json

IMPORTED = (
    "foveal.cli.options",
    "foveal.compat",
    "foveal.recipes.bytes.kind",
    "foveal.recipes.bytes.writing",
    "foveal.recipes.run",
    "foveal.training.trainer",
    "numpy.ctypeslib",
    "numpy.ma",
    "torch.utils.serialization",
    "torch.utils.tensorboard",
    "tensorboard.plugins.hparams.api_pb2",
    "torch._dynamo",  # optimizers import it
)


def prepare(recipe, *modules):
    """Do once what each process would do again; then memory stays as it is.

    A turn of the garbage collector writes into every object, and where a process was forked each
    page that is written into is copied.
    """
    for name in (*IMPORTED, *modules):
        importlib.import_module(name)
    config = importlib.import_module("foveal.recipes.config").load_recipe(recipe)
    importlib.import_module("foveal.cli.options").parse_overrides(config, [])
    gc.collect()
    gc.freeze()
    gc.disable()


def run(ask, script, *arguments):
    """What a script prints as JSON in its last line, run in a fork of one that has torch.

    Args:
        ask: the fixture after_dynamo.
        arguments: the first one is a file, in whose folder the script runs.
    """
    words = [str(word) for word in (script, *arguments)]
    said = ask(
        "import os, runpy, sys\n"
        f"os.chdir({str(arguments[0].parent)!r})\n"
        f"sys.argv = {words}\n"
        f"sys.path.insert(0, {str(script.parent)!r})\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    return json.loads(said.splitlines()[-1])
