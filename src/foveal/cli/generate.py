"""`foveal generate RUN --prompt "def "`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from foveal.cli.options import parse
from foveal.recipes.run import generate
from foveal.recipes.runs import find_run


@dataclass(kw_only=True)
class Options:
    """Let a run's model go on writing after a prompt.

    Attributes:
        run: the run's folder, or "latest".
        prompt: what to continue.
        length: bytes to write.
        temperature: 0 always takes the likeliest byte; 1 samples as the model believes.
        top_k: sample from the k likeliest bytes only.
        top_p: sample from the likeliest bytes that together have this probability.
        min_p: leave out bytes less likely than this fraction of the likeliest one.
        seed: the same seed writes the same text.
    """

    run: Annotated[str, tyro.conf.Positional]
    prompt: str
    length: int = 400
    temperature: float = 0.7
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None


def main(arguments: list[str]) -> int:
    """Print the prompt, its continuation and the speed."""
    options = parse(Options, arguments, "generate")
    written = generate(
        find_run(options.run),
        options.prompt,
        options.length,
        seed=options.seed,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
    )
    print(written.prompt + written.text)
    speed = written.tokens / written.seconds
    print(f"\n[{written.tokens} tokens in {written.seconds:.1f} s: {speed:,.0f} tokens/s]")
    return 0
