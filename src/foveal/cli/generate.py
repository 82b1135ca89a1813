"""`foveal generate RUN --prompt "def "`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from foveal.cli.parsing import parse


@dataclass(kw_only=True)
class Options:
    """Let a run's model go on writing after a prompt, or draw pictures.

    Attributes:
        run: the run's folder, or "latest".
        prompt: what to continue; for a model of pixels a picture file whose lower half it draws,
            or nothing.
        length: bytes to write; for a model of pixels, pictures to draw.
        temperature: 0 always takes the likeliest byte; 1 samples as the model believes. 0.7 for
            text and 1 for pictures unless given.
        top_k: sample from the k likeliest bytes only.
        top_p: sample from the likeliest bytes that together have this probability.
        min_p: leave out bytes less likely than this fraction of the likeliest one.
        seed: the same seed writes the same text.
    """

    run: Annotated[str, tyro.conf.Positional]
    prompt: str = ""
    length: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None


def main(arguments: list[str]) -> int:
    """Print the prompt, its continuation and the speed; or the path of the pictures."""
    options = parse(Options, arguments, "generate")
    from foveal.recipes.pixel_runs import generate_pictures
    from foveal.recipes.run import generate
    from foveal.recipes.runs import find_run, load_config

    folder = find_run(options.run)
    pixels = load_config(folder).task == "pixels"
    default = 1.0 if pixels else 0.7
    sampling: dict[str, Any] = {
        "seed": options.seed,
        "temperature": default if options.temperature is None else options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "min_p": options.min_p,
    }
    if pixels:
        count = 8 if options.length is None else options.length
        print(generate_pictures(folder, options.prompt, count=count, **sampling))
        return 0
    length = 400 if options.length is None else options.length
    written = generate(folder, options.prompt, length, **sampling)
    print(written.prompt + written.text)
    speed = written.tokens / written.seconds
    print(f"\n[{written.tokens} tokens in {written.seconds:.1f} s: {speed:,.0f} tokens/s]")
    return 0
