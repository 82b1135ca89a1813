"""The volumes that docs/scale.md tells are those that parallel.explain computes."""

import re
from pathlib import Path

import pytest

from foveal import parallel
from foveal import patterns as P

PAGE = Path(__file__).parents[2] / "docs/scale.md"
UNITS = {"MB": 1e6, "GB": 1e9}
LENGTH = 1 << 20


def sizes_of(cell):
    """Bytes of "16.8 / 16.8 MB" or "2.35 GB / -"; None for a dash."""
    last, found = UNITS[re.findall("[MG]B", cell)[-1]], []
    for one in cell.split("/"):
        number = re.match(r"\s*([\d.]+) ?([MG]B)?", one)
        found.append(number and float(number[1]) * UNITS.get(number[2], last))
    return found


def rows():
    """(pattern, sizes of the layer, cells) of each row of the table."""
    lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| `")]
    for line in lines:
        names, layer, *cells = (c.strip() for c in line.replace(r"\|", "or").split("|")[1:-1])
        numbers = list(map(int, re.findall(r"\d+", layer)))
        if "heads of" not in layer:
            continue
        for name in re.findall("`(.*?)`", names):
            pattern = eval(name.replace(" or ", " | "), vars(P))
            layer_sizes = dict(zip(("heads", "head_dim", "kv_heads"), numbers, strict=False))
            yield pytest.param(pattern, layer_sizes, cells, id=name)


@pytest.mark.parametrize(("pattern", "layer", "cells"), list(rows()))
def test_the_table_is_what_explain_computes(pattern, layer, cells):
    """The numbers of the page, to their three digits; long parts of slow patterns are left out."""
    ours, gathered, ulysses = cells
    gathered = ours if gathered == "the same" else gathered
    parts = [[None] * 3 if "B" not in c else sizes_of(c) for c in (ours, gathered, ulysses)]
    is_slow = isinstance(pattern, P.Pyramid | P.Union)
    for number, ranks in enumerate((8, 64, 512)):
        if is_slow and ranks == 8:
            continue
        said = parallel.explain(pattern, LENGTH, ranks, **layer)
        for wanted, found in zip(parts, (said.bytes, said.all_gather, said.ulysses), strict=True):
            if wanted[number] is None:
                assert found is None
            else:
                assert found == pytest.approx(wanted[number], rel=0.01)


def test_there_are_rows():
    """The table has been read."""
    assert len(list(rows())) == 7
