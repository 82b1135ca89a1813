"""The `foveal` command. Subcommands load on demand, so that `foveal --help` answers at once."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from foveal.common.words import suggest

COMMANDS = {
    "train": "train a recipe: foveal train bytes-hourglass",
    "evaluate": "score a run on held-out data: foveal evaluate latest",
    "predict": "name what is in pictures: foveal predict latest cat.png",
    "generate": 'let a run write: foveal generate latest --prompt "def "',
    "report": "rewrite a run's report.html and name its pictures: foveal report latest",
    "draw": 'draw a pattern, attention, or pictures: foveal draw picture latest "a red heart"',
    "bench": "time attention beside dense attention on this machine",
    "list": "recipes, patterns and models that there are",
}
_MODULES = {"list": "listing"}

USAGE_ERROR, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for a mistake in the input, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else USAGE_ERROR
    if arguments[0] in ("-V", "--version"):
        from importlib.metadata import version

        print("foveal", version("foveal"))
        return 0
    if arguments[0] not in COMMANDS:
        return _complain(f"unknown command {arguments[0]!r}; {suggest(arguments[0], COMMANDS)}")
    return _run(arguments[0], arguments[1:])


def _run(command: str, arguments: list[str]) -> int:
    """Run a subcommand and turn what the user can mend into one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        try:
            module = importlib.import_module(f"foveal.cli.{_MODULES.get(command, command)}")
            code: int = module.main(arguments)
            return code
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED
        except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except ModuleNotFoundError as error:
            if (error.name or "foveal").startswith("foveal"):
                raise
            return _complain(f"{error.name} is not installed: pip install 'foveal[train,draw]'")
        except (ValueError, OSError, FloatingPointError) as error:
            if os.environ.get("FOVEAL_TRACEBACK"):
                raise
            return _complain(str(error))


def _complain(message: str) -> int:
    print("foveal:", " ".join(message.split()), file=sys.stderr)
    return USAGE_ERROR


def _show_warning(message: Warning | str, category: type[Warning], *where: Any) -> None:
    """Our own warnings as one line; those of other packages about their code are not for users."""
    if issubclass(category, UserWarning):
        print("foveal: warning:", " ".join(str(message).split()), file=sys.stderr)


def _usage() -> str:
    lines = [f"  {name:<10}{text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: foveal COMMAND [OPTIONS]",
            "",
            "Structured attention for PyTorch: train, score, draw.",
            "",
            *lines,
            "",
            "foveal COMMAND --help explains its options; FOVEAL_TRACEBACK=1 shows where an error",
            "came from.",
        ]
    )
