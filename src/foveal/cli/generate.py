"""`foveal generate RUN --prompt "def "`."""

from __future__ import annotations

import json
import os
import select
import stat
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from foveal.cli.parsing import parse

_MOST_INPUT = 16 << 20


@dataclass(kw_only=True)
class Options:
    """Let a run's model go on writing after a prompt, or draw pictures.

    Attributes:
        run: the run's folder, or "latest".
        prompt: what to continue; - reads it from the standard input, which is also read when
            something is piped into the command. Without any the model starts a line. Of a long
            prompt it sees the end. For a model of pixels a picture file, whose lower half it
            draws, or nothing.
        length: bytes to write, 400 unless given; for a model of pixels, pictures to draw, 8.
        temperature: 0 always takes the likeliest byte; 1 samples as the model believes. 0.7 for
            text and 1 for pictures unless given.
        top_k: sample from the k likeliest bytes only.
        top_p: sample from the likeliest bytes that together have this probability.
        min_p: leave out bytes less likely than this fraction of the likeliest one.
        seed: the same seed writes the same text.
        beside: a file of foveal export: let it write as well, and tell where the two part and how
            much their logits differ. Both write 64 tokens unless told, and always take the
            likeliest one unless a temperature is given. Nothing is kept.
        device: auto, cpu, cuda, cuda:1 or mps.
        json: print prompt, text, tokens and seconds, or the path of the pictures, as JSON.
    """

    run: Annotated[str, tyro.conf.Positional]
    prompt: str | None = None
    length: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    beside: Annotated[str | None, tyro.conf.arg(name="with")] = None
    device: str = "auto"
    json: bool = False


def main(arguments: list[str]) -> int:
    """Print the prompt, its continuation and the speed; or the path of the pictures."""
    options = parse(Options, arguments, "generate")
    from foveal.recipes.run import compare, generate
    from foveal.recipes.runs import open_run

    run = open_run(options.run)
    kind, temperature = run.kind, options.temperature
    prompt = _read_prompt(options.prompt) if kind.continues_text else options.prompt or ""
    sampling = {name: getattr(options, name) for name in ("seed", "top_k", "top_p", "min_p")}
    if options.beside is None:
        sampling["temperature"] = kind.temperature if temperature is None else temperature
        written = generate(run, prompt, options.length, device=options.device, **sampling)
    else:
        sampling["temperature"] = temperature
        given = {name: value for name, value in sampling.items() if value is not None}
        written = compare(
            run, options.beside, prompt, options.length, device=options.device, **given
        )
    found = written.to_dict()
    print(json.dumps(found, indent=2 if len(found) > 1 else None) if options.json else written)
    return 0


def _read_prompt(prompt: str | None) -> str:
    """The prompt as given, or what the standard input holds where that was meant."""
    if prompt not in (None, "-"):
        return str(prompt)
    if prompt is None and not _is_piped():
        return ""
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:
        return sys.stdin.read(_MOST_INPUT)
    given: bytes = stream.read(_MOST_INPUT)
    return given.decode("utf-8", errors="surrogateescape")


def _is_piped() -> bool:
    """Whether somebody has piped or redirected something into the command."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # closed, or replaced by what is no file
        return False
    if stat.S_ISREG(mode):
        return True
    # a pipe that nobody writes to, as of a service or a notebook, must not be waited for
    return stat.S_ISFIFO(mode) and _has_something(sys.stdin.fileno())


def _has_something(handle: int) -> bool:
    try:
        return bool(select.select([handle], [], [], 1.0)[0])
    except OSError:  # Windows waits for sockets only
        return False
