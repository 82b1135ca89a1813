"""The tables of the page are the library's: rows, tiles, caches, shards and counts."""

import re

import pytest
import torch

import foveal
from foveal.explore import page as pages
from foveal.explore import tables
from foveal.explore.families import FAMILIES, given
from foveal.patterns.needs import listed


@pytest.fixture(scope="module")
def whole(page_text):
    """The page as it is shipped, and what it says when a browser unpacks it."""
    text = page_text
    packed = re.search(r'<script type="text/plain" id="tables">([^<]*)</script>', text)[1]
    return text, pages.unpacked(packed)


def positions(runs):
    """Positions in a flat list of runs."""
    assert len(runs) % 2 == 0
    pairs = list(zip(runs[::2], runs[1::2], strict=True))
    assert all(low < high for low, high in pairs)
    return listed(tuple(pairs))


def entries(content, family):
    """(choice, entry) of a family."""
    shown = next(one for one in content["families"] if one["name"] == family.name)
    assert shown["options"] == [[name, list(values)] for name, values in family.options.items()]
    return list(zip(family.choices(), shown["entries"], strict=True))


def dense(rows, columns):
    """Rows of runs as a mask."""
    mask = torch.zeros(len(rows), columns, dtype=torch.bool)
    for row, runs in zip(mask, rows, strict=True):
        row[positions(runs)] = True
    return mask


@pytest.mark.parametrize("family", FAMILIES, ids=lambda one: one.name)
def test_rows_are_the_mask(whole, family):
    """Every pattern, option and size of the page reads what the pattern's mask says."""
    shown = 0
    for choice, entry in entries(whole[1], family):
        if "error" in entry:
            with pytest.raises(ValueError, match=re.escape(entry["error"][:20])):
                family.pattern(choice)
            continue
        pattern, length = family.pattern(choice)
        assert foveal.patterns.serialize.parse(entry["text"]) == pattern
        queries = pattern.num_queries(length)
        assert (entry["length"], entry["queries"]) == (length, queries)
        masks = pattern.mask(queries, length)
        masks = masks if pattern.heads else masks[None]
        for head, mask in zip(entry["heads"], masks, strict=True):
            assert torch.equal(dense(head["rows"], length), mask)
        if not pattern.pools:
            assert entry["pairs"] == int(masks.sum())
        shown += 1
    assert shown


@pytest.mark.parametrize("family", FAMILIES, ids=lambda one: one.name)
def test_what_is_kept_fetched_and_tiled(whole, family):
    """Nothing that a query reads is missing from its tile, its rank, or the cache before it."""
    choice, entry = entries(whole[1], family)[0]
    pattern, length = family.pattern(choice)
    mask = dense(entry["heads"][0]["rows"], length)
    for queries, keys in entry["heads"][0]["tiles"] or []:
        rows = mask[positions(queries)]
        mask[positions(queries)] = False
        rows[:, positions(keys)] = False
        assert not rows.any()
    assert entry["heads"][0]["tiles"] is None or not mask.any()  # every query stood in one
    for ranks, parts in (entry["needs"] or {}).items():
        assert len(parts) == int(ranks)
        for own, read in parts:
            needed = pattern.needs(*own, length)
            assert read == tables.flat(needed)
        assert torch.equal(torch.cat([positions(own) for own, _ in parts]), torch.arange(length))
    if entry["keeps"]:
        first = entry["keeps"]["first"]
        assert len(entry["keeps"]["runs"]) == length - first
        for at in range(first, length, 7):
            kept = pattern.keeps(at)
            kept = torch.as_tensor(list(kept) if isinstance(kept, range) else kept)
            assert torch.equal(positions(entry["keeps"]["runs"][at - first]), kept.long())


def test_pairs_and_flops_are_those_of_explain(whole):
    """What is computed costs what `explain` says of the tiled way, in heads of 64 features."""
    for family in FAMILIES:
        choice, entry = entries(whole[1], family)[0]
        pattern, length = family.pattern(choice)
        told = foveal.explain(pattern, length, heads=1, head_dim=whole[1]["headDim"])
        assert entry["pairs"] // entry["numHeads"] == told.pairs
        if told.impl in ("tiled", "native"):
            assert entry["visited"] == told.visited * entry["numHeads"]
        # page.js multiplies pairs with this
        heads = pattern.heads or 1
        assert told.flops == 4 * whole[1]["headDim"] * told.visited * heads


def test_pooled_keys_have_levels(whole):
    """Of each pooled run the page knows in how large clusters it is read."""
    family = next(one for one in FAMILIES if one.name == "Pyramid")
    for choice, entry in entries(whole[1], family)[:4]:
        pattern, _ = family.pattern(choice)
        rows, levels = entry["heads"][0]["rows"], entry["heads"][0]["levels"]
        for query, (runs, found) in enumerate(zip(rows, levels, strict=True)):
            for low, high, level in zip(runs[::2], runs[1::2], found, strict=True):
                said = pattern.level(torch.tensor(query), torch.arange(low, high))
                assert said.unique().tolist() == [level]


def test_the_page_is_one_small_file(whole):
    """It asks nobody for anything, is under 1 MB, and its policy names the script that it has."""
    text, content = whole
    assert len(text.encode()) < pages.MOST_BYTES
    assert not re.search(r"https?:", text)
    sources = pages._read("page.html", *pages.STYLES, *pages.SCRIPTS)
    assert not re.search(r"//[a-z]|@import|url\(", sources)
    assert "@@" not in text
    assert "innerHTML" not in text
    assert "eval(" not in text
    script = re.search(r"<script>(.*?)</script>", text, re.S)[1]
    assert pages._digest(script) in text
    assert pages._digest(re.search(r"<style>(.*?)</style>", text, re.S)[1]) in text
    options = {name for family in content["families"] for name, _ in family["options"]}
    assert not options & {"pattern", "look", "at", "show", "ranks", "head"}


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("SlidingWindow(5)", 37),
        ("BlockSparse.bigbird(64, 8, num_heads=2, different_layout_per_head=True)", None),
        ("Axial((1, 7), 'row')", None),
        ("Blocks(3)", 1),
    ],
)
def test_a_pattern_of_ones_own(text, length):
    """A pattern by its text is described as those of the page are, for each head of it."""
    family = given(text, length)
    entry = tables.table(family, {})
    pattern, length = family.pattern({})
    masks = pattern.mask(pattern.num_queries(length), length)
    masks = masks if pattern.heads else masks[None]
    assert len(entry["heads"]) == len(masks)
    for head, mask in zip(entry["heads"], masks, strict=True):
        assert torch.equal(dense(head["rows"], length), mask)
    assert entry["text"] == text
