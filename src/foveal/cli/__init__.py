"""The `foveal` command. Subcommands load on demand, so that `foveal --help` answers at once."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, TextIO

from foveal.common.inputs import has_lost_a_process, is_out_of_memory, reason
from foveal.common.packages import how_to_get
from foveal.common.words import shorten, suggest
from foveal.version import __version__

COMMANDS = {
    "train": "train a recipe: foveal train bytes-hourglass",
    "evaluate": "score a run on held-out data: foveal evaluate latest",
    "predict": "name what is in pictures: foveal predict latest cat.png",
    "generate": 'let a run write: foveal generate latest --prompt "def "',
    "export": "write a run's model as a program or as ONNX: foveal export latest",
    "push": "upload a run's model to the Hub: foveal push latest user/name",
    "report": "rewrite a run's report.html and name its pictures: foveal report latest",
    "draw": 'draw a pattern, attention, or pictures: foveal draw "SlidingWindow(8)"',
    "explore": "explore patterns on a page in your browser",
    "bench": "time attention beside dense attention on this machine",
    "list": "recipes, patterns and models that there are",
}
_MODULES = {"list": "listing"}

USAGE_ERROR, INTERRUPTED = 2, 130

_OUR_FAULT = (
    "This is a fault of foveal {version}, not of what you typed. Please report it with the lines "
    "above and the command: foveal {command}"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for a mistake in the input, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _hold_streams()
    for stream in (sys.stdout, sys.stderr):
        _write_anything(stream)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if arguments else USAGE_ERROR
    if arguments[0] in ("-V", "--version"):
        print("foveal", __version__)
        return 0
    if arguments[0] not in COMMANDS:
        known, what = list(COMMANDS), "command"
        if arguments[0].startswith("-"):
            known, what = ["--help", "--version"], "option"
        return _complain(f"unknown {what} {arguments[0]!r}; {suggest(arguments[0], known)}")
    return _run(arguments[0], arguments[1:])


def _run(command: str, arguments: list[str]) -> int:
    """Run a subcommand and turn what the user can mend into one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        try:
            module = importlib.import_module(f"foveal.cli.{_MODULES.get(command, command)}")
            code: int = module.main(arguments)
            sys.stdout.flush()  # here, where an error of it can still be told
            return code
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED
        except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
            _drop_output()
            return 0
        except Exception as error:
            return _answer(error, command, arguments)


def _answer(error: Exception, command: str, arguments: list[str]) -> int:
    """One line for what the user can mend; anything else goes on, and says whose fault it is."""
    if os.environ.get("FOVEAL_TRACEBACK"):
        raise error
    if isinstance(error, ModuleNotFoundError) and not (error.name or "foveal").startswith(
        "foveal"
    ):
        package = str(error.name).partition(".")[0]
        return _complain(
            f"this needs the package {package}, which is not installed: {how_to_get(package)}"
        )
    if is_out_of_memory(error):
        return _complain(f"foveal {command} needs more memory than there is; try smaller sizes.")
    if has_lost_a_process(error):
        return _complain(
            "another process of this command has ended, so this one ends as well; what that one "
            f"said is the reason. What was saved is whole. (Here: {reason(error)})"
        )
    if isinstance(error, RecursionError):
        return _complain("something that was given is nested too deeply.")
    if isinstance(error, OSError):
        if error.filename is None and error.errno is not None:  # not of a file: of the output
            _drop_output()
        return _complain(reason(error))
    if isinstance(error, ValueError | FloatingPointError | OverflowError):
        return _complain(reason(error))
    line = " ".join([command, *arguments])
    error.add_note(_OUR_FAULT.format(version=__version__, command=shorten(line)))
    raise error


def _complain(message: str) -> int:
    print("foveal:", shorten(message), file=sys.stderr)
    return USAGE_ERROR


def _show_warning(message: Warning | str, category: type[Warning], *where: Any) -> None:
    """Our own warnings as one line; those of other packages about their code are not for users."""
    if issubclass(category, UserWarning):
        print("foveal: warning:", shorten(str(message), 500), file=sys.stderr)


def _hold_streams() -> None:
    """Open what whoever started us has closed, as cron and services do: nothing is to be heard.

    Otherwise the next file that is opened would take the place of the output.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nothing = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, so its own
            setattr(sys, name, os.fdopen(nothing, mode))


def _write_anything(stream: TextIO) -> None:
    """File names and texts hold what the terminal's encoding lacks; that is no reason to fail."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Let what is still to be printed go nowhere: Python would complain when it ends."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # the output is no file
        return


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
            "foveal COMMAND --help explains its options, foveal --version tells the version.",
            "A mistake is told in one line; FOVEAL_TRACEBACK=1 shows where it was noticed.",
        ]
    )
