"""`foveal explore`: a page to explore patterns on, served on this machine or written to a file."""

from __future__ import annotations

import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from foveal.cli.parsing import check_output, parse
from foveal.common.files import write_text
from foveal.common.inputs import reading


@dataclass(kw_only=True)
class Options:
    """Explore patterns in a browser: who reads whom, tiles, caches, shards, what it costs.

    Attributes:
        patterns: such as "SlidingWindow(64)"; they are shown before those that the page has.
        length: tokens of these patterns; the whole image of an image pattern, else 64, unless
            given.
        output: write the page, which needs no other file and no network, and do not serve it.
        port: of this machine, which no other can reach; 0 takes any that is free.
        no_browser: only say where the page is.
    """

    patterns: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(help_behavior_hint="")
    ] = ()
    length: int | None = None
    output: Path | None = None
    port: int = 8808
    no_browser: bool = False


def main(arguments: list[str]) -> int:
    """Write the page, or serve it until somebody presses Ctrl-C."""
    options = parse(Options, arguments, "explore")
    if options.length is not None and not options.patterns:
        raise ValueError(
            "--length is of the patterns that are given, and there are none, got "
            f"--length {options.length}."
        )
    if options.output is not None:
        path = check_output(options.output, (".html", ".htm"))
        write_text(path, _page(options))
        print(path)
        return 0
    from foveal.explore.serve import PageServer

    with PageServer(options.port) as server:  # a port that cannot be had is told before the work
        server.page = _page(options)
        address = f"http://{server.server_address[0]!s}:{server.server_address[1]}/"
        print(f"{address} (Ctrl-C ends it)", flush=True)
        if not options.no_browser:
            webbrowser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


def _page(options: Options) -> str:
    """The page, with the patterns that were given in front."""
    from foveal.explore.families import given
    from foveal.explore.page import page
    from foveal.explore.tables import describe
    from foveal.training.progress import showing, tracked

    more = []
    for name in options.patterns:
        with reading(f"the pattern {name!r}"):
            more.append(given(name, options.length))
            describe(*more[-1].pattern({}))
    with showing("working out patterns"):
        return page(more, tracked)
