"""Every command that documents, recipes and help print can be typed."""

import re
import shlex
from pathlib import Path

import pytest

from foveal.cli import (
    COMMANDS,
    bench,
    draw,
    evaluate,
    explore,
    export,
    generate,
    listing,
    main,
    predict,
    push,
    report,
)
from foveal.cli.options import parse_overrides
from foveal.cli.parsing import parse
from foveal.recipes.config import load_recipe, recipe_names

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
RECIPES = [*(ROOT / "src/foveal/recipes").rglob("*.toml")]
OPTIONS = {
    "evaluate": evaluate.Options,
    "generate": generate.Options,
    "predict": predict.Options,
    "push": push.Options,
    "report": report.Options,
    "draw": draw.Options,
    "draw attention": draw.AttentionOptions,
    "draw picture": draw.PictureOptions,
    "draw softcap": draw.SoftcapOptions,
    "draw sinks": draw.SinksOptions,
    "explore": explore.Options,
    "export": export.Options,
    "bench": bench.Options,
    "list": listing.Options,
}


def commands() -> list[str]:
    """What stands behind `foveal` in shell blocks, inline code, recipes and help."""
    found = set(COMMANDS.values())
    for path in DOCUMENTS:
        text = path.read_text("utf-8")
        for block in re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            found.update(block.replace("\\\n", " ").splitlines())
        found.update(re.findall(r"`([^`\n]*)`", text))
    for path in RECIPES:
        found.update(re.findall(r"^#(.*foveal .*)$", path.read_text("utf-8"), re.MULTILINE))
    starts = (re.search(r"(?:^|\s|: )foveal(?:\.cli)? ([a-z-][^#]*)", line) for line in found)
    lines = {match[1].strip().rstrip(".;,") for match in starts if match}
    lines = {line.rstrip("\\ ") for line in lines}
    return sorted(line for line in lines if line.split()[0] in COMMANDS or line[0] == "-")


CALLED = {"beside": "with"}
"""Options whose name is a word of Python's own."""
NAMES = {*COMMANDS, *OPTIONS} - {"list", "bench"}
"""What is the name of a command where it stands alone, and nothing to type."""


def words(line: str) -> list[str]:
    """The line as a shell reads it, without what it replaces or sends elsewhere."""
    plain = re.sub(r"\$\w+|\s\.\.\.|\s[|>;&].*", "", line) if '"' not in line else line
    return [word for word in shlex.split(plain.replace("$SMALL", "")) if not word.startswith("$")]


def test_there_are_some():
    """The documents show each command."""
    assert {line.split()[0] for line in commands()} >= set(COMMANDS)
    assert len(commands()) > 30


@pytest.mark.parametrize("line", commands())
def test_a_documented_command_is_understood(line):
    """Its options and their values exist; a shipped recipe is one, and takes what is changed."""
    command, *rest = words(line)
    if "--help" in rest or command.startswith("-") or line in NAMES:
        return
    if command == "train":
        if rest[0].startswith("--"):  # a run that goes on has its recipe
            rest = ["RECIPE", *rest]
        shipped = rest[0] in recipe_names()
        if not shipped and not rest[0].endswith(".toml") and rest[0].isupper() is False:
            raise AssertionError(f"no such recipe: {rest[0]}")
        parse_overrides(load_recipe(rest[0] if shipped else "bytes-transformer"), rest[1:])
        return
    if rest and f"{command} {rest[0]}" in OPTIONS:
        command, rest = f"draw {rest[0]}", rest[1:]
    parse(OPTIONS[command], rest, command)


CHEAP = [line for line in commands() if line.split()[0] in ("list", "draw", "--help", "--version")]


@pytest.mark.parametrize("line", [line for line in CHEAP if "latest" not in line])
def test_a_cheap_command_works(line, tmp_path, monkeypatch, capsys):
    """What needs neither a run nor time is run as it stands."""
    if "MyPattern" in line or "PATTERN" in line or line in NAMES:
        return  # the first two stand for a pattern that the reader is about to write
    monkeypatch.chdir(tmp_path)
    assert main(words(line)) == 0
    assert capsys.readouterr().out.strip()


EXPLAINED = sorted({*COMMANDS, *OPTIONS, "train bytes-hourglass", "train captions-dalle"})


@pytest.mark.parametrize("command", EXPLAINED)
def test_every_command_explains_every_option(command, capsys):
    """The help says something about each option, in plain words."""
    try:
        code = main([*command.split(), "--help"])
    except SystemExit as stop:
        code = stop.code
    assert not code
    said = capsys.readouterr().out
    assert said.startswith(f"usage: foveal {command}")
    for name in ("STR", "{None}", "FLOAT", "(default: None", "(default: )", "(default: '')"):
        assert name not in said
    for name in ("typing.", "<class", "'\"'\"'", "Options("):  # of Python and the shell, not words
        assert name not in said
    if not command.startswith("train"):
        for field in OPTIONS[command].__dataclass_fields__:
            shown = CALLED.get(field, field).replace("_", "-")
            assert f"--{shown}" in said or field.upper()[:-1] in said
