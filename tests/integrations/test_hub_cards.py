"""Model cards, and the runs whose models are pushed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("huggingface_hub", reason="the extra `hub` is not installed")

from hub_models import ONE_LINE, equal, model
from hub_server import TOKEN, Repo
from huggingface_hub import ModelCard

import foveal
from foveal.cli import main
from foveal.integrations.hub import Card, write_card
from foveal.models import load_model
from foveal.recipes.publish import publish

# huggingface_hub 2.4.0 uploads by a keyword that its client has deprecated
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

# -- the card -----------------------------------------------------------------------------------

TEXTS = [
    "plain", "---", "a\n---\nb: [", "a: b\n- c", "'\"", "{}", "null", "no", "1e3", "# x",
    "| a | b", "```\n```", "\x00\x07\x1b[2J", "\udcff", "\U0001f600 \u2028 \u00fc", "&a *a",
    "!!python/object:os.system", "%TAG", "<script>", "x" * 5000, " ", "\\",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: ascii(text)[:20])
def test_a_card_holds_any_text(text):
    """Whatever people write, the metadata read back, and nothing of the card is lost to it."""
    card = Card(
        description=text, data=text, scored_on=text, command=text, tags=[text], datasets=text,
        language=text, scores={text: 0.5}, facts={text: text}, settings={text: [text]},
    )  # fmt: skip
    written = write_card(model(), "me/model", card)
    written.encode()
    read = ModelCard(written)
    found = read.data.to_dict()
    assert found["library_name"] == "foveal"
    assert found["pipeline_tag"] == "text-generation"
    assert found["tags"][:2] == ["foveal", "transformer"]
    assert len(found["tags"]) == 3
    assert found["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.5
    assert "\n## Licence\n" in read.text
    assert 'foveal.load_model("me/model")' in read.text
    if text == "plain":
        assert (found["datasets"], found["language"], found["tags"][2]) == (["plain"],) + (
            "plain",
        ) * 2


def test_nothing_is_said_by_none():
    """A keyword that is None is one that was left out."""
    names = [one.name for one in dataclasses.fields(Card)]
    assert Card(**dict.fromkeys(names)) == Card()
    assert write_card(model(), "me/model", Card(**dict.fromkeys(names))).endswith("named none.\n")


def test_what_a_card_tells(hub):
    """Keywords and what the model knows; an unknown keyword or a score that is none is refused."""
    one = model(pattern="SlidingWindow(4)")
    one.push_to_hub(
        "me/model", token=TOKEN, license="mit", data="letters", datasets=["some/letters"],
        scores={"bits_per_byte": 2}, description="Writes **letters**.", tags=("tiny",),
    )  # fmt: skip
    text = hub.files("me/model")["README.md"].decode()
    data = ModelCard(text).data.to_dict()
    assert data["license"] == "mit"
    assert data["datasets"] == ["some/letters"]
    assert data["tags"] == ["foveal", "transformer", "tiny"]
    result = data["model-index"][0]["results"][0]
    assert result["dataset"] == {"type": "some/letters", "name": "letters"}
    assert result["metrics"] == [{"type": "bits_per_byte", "name": "bits per byte", "value": 2}]
    for words in ("Writes **letters**.", "SlidingWindow(window=4", f"{one.num_parameters:,}"):
        assert words in text
    for options, said in (
        ({"licence": "mit"}, "did you mean 'license'"),
        ({"scores": {"a": float("nan")}}, "scores must be finite numbers"),
        ({"scores": 3}, "scores must be a mapping"),
        ({"license": "wtf"}, '"license" must be one of'),
    ):
        with pytest.raises(ValueError, match=said):
            one.push_to_hub("me/model", token=TOKEN, **options)


def test_a_card_of_ones_own_stays(hub):
    """A README.md that somebody has written is left alone, in words; ours is written anew."""
    model().push_to_hub("me/model", token=TOKEN)
    model().push_to_hub("me/model", token=TOKEN, license="mit")
    assert b"license: mit" in hub.files("me/model")["README.md"]
    hub.put("me/model", README_md=b"# Mine")
    model(1).push_to_hub("me/model", token=TOKEN)
    with pytest.warns(UserWarning, match=r"README\.md of me/model is not foveal's"):
        model(2).push_to_hub("me/model", token=TOKEN, license="mit")
    assert hub.files("me/model")["README.md"] == b"# Mine"
    assert equal(load_model("me/model"), model(2))


def test_a_card_says_how_to_load(hub, tmp_path, monkeypatch):
    """The lines of the card run."""
    model().push_to_hub("me/model", token=TOKEN)
    text = hub.files("me/model")["README.md"].decode()
    scope: dict = {}
    exec(text.split("```python\n")[1].split("```")[0], scope)
    assert equal(scope["model"], model())
    assert foveal.load_model is load_model


def pages() -> list[Path]:
    docs = Path(__file__).parents[2] / "docs"
    return [path for path in docs.glob("*.md") if "push_to_hub(" in path.read_text("utf-8")]


@pytest.mark.parametrize("page", pages(), ids=lambda path: path.stem)
def test_what_the_guide_shows(page, hub, monkeypatch):
    """The lines about the Hub run; the Hub is ours, which takes what belongs to `me`."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    blocks = re.findall(r"^```py\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    scope = {"foveal": foveal, "model": model(), "torch": torch}
    for block in blocks:
        if "push_to_hub(" in block:
            exec(block.replace('"user/', '"me/'), scope)
    assert list(hub.repos)
    assert {"again", "pinned"} <= scope.keys()
    assert all(equal(scope[name], scope["model"]) for name in ("again", "pinned"))


# -- runs and the command -----------------------------------------------------------------------


@pytest.fixture
def run(recipe, tmp_path):
    """The folder of a run as a training leaves it, and its model."""
    from foveal.recipes.config import absolute_paths, load_recipe
    from foveal.recipes.kind import find_kind
    from foveal.recipes.report import EVALUATION, RESULT
    from foveal.recipes.runs import CHECKPOINTS, CONFIG, write_json
    from foveal.training.checkpoints import save_checkpoint

    config = absolute_paths(load_recipe(str(recipe)))
    folder, name = tmp_path / "run", f"{tmp_path / 'text.txt'}, held-out part"
    trained = find_kind(config.task).build(config).eval()
    folder.mkdir()
    write_json(folder / CONFIG, config.to_dict())
    save_checkpoint(folder / CHECKPOINTS, 24, trained, {}, config.to_dict(), keep=1)
    facts = {"parameters": "1", "training data": f"{name}: 7 bytes, checksum ab"}
    write_json(folder / RESULT, {"steps": 24, "bits_per_byte": 2.5, "facts": facts})
    score = {"bits_per_byte": 2.25, "data": name, "checkpoint": "step-00000024"}
    write_json(folder / EVALUATION, score)
    return folder, trained


def test_a_run_is_pushed(hub, run, tmp_path, monkeypatch, capsys):
    """`foveal push` uploads the last checkpoint, and a card of data, score and command.

    Of an earlier run nothing is left; files that are none of a run's stay; no path is told.
    """
    folder, trained = run
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.repos["me/tiny"] = Repo()
    hub.repos["me/tiny"].commit("main", {"classes.json": b"[]", "notes.txt": b"mine"})
    assert main(["push", str(folder), "me/tiny", "--license", "mit", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["commit"] == hub.repos["me/tiny"].refs["main"]
    assert (told["repo"], told["checkpoint"]) == ("me/tiny", "step-00000024")
    assert equal(load_model("me/tiny"), trained)
    files = hub.files("me/tiny")
    names = {"README.md", "config.json", "model.safetensors", "run.json", "notes.txt"}
    assert set(files) == names
    assert not any(str(tmp_path).encode() in raw for raw in files.values())
    card = ModelCard(files["README.md"].decode())
    result = card.data.eval_results[0]
    assert (result.metric_type, result.metric_value) == ("bits_per_byte", 2.25)
    assert (result.dataset_name, card.data.license) == ("text.txt, held-out part", "mit")
    for words in ("foveal train tiny.toml", '"learning_rate": 0.01', "checksum ab"):
        assert words in card.text
    assert json.loads(files["run.json"])["training"]["steps"] == 24


def test_what_a_run_keeps_is_pushed(hub, run):
    """The names of its classes go with a classifier; keywords win over what a run tells."""
    folder, trained = run
    (folder / "classes.json").write_text('["cat", "dog"]')
    trained.push_to_hub("me/tiny", token=TOKEN, run=folder, data="letters", tags=["mine"])
    files = hub.files("me/tiny")
    assert json.loads(files["classes.json"]) == ["cat", "dog"]
    text = files["README.md"].decode()
    assert "letters" in text
    assert "checksum ab" not in text
    assert ModelCard(text).data.tags[2:] == ["mine"]
    with pytest.raises(ValueError, match="is not a run folder"):
        trained.push_to_hub("me/tiny", token=TOKEN, run="nowhere")


def test_a_run_that_is_damaged(run):
    """What its files tell is told, or they are named in one line; whatever they hold."""
    folder = run[0]
    for name in ("evaluation.json", "result.json"):
        whole = (folder / name).read_text()
        for odd in ("[]", "3", '"x"', "[1]", '{"facts": 3}', '{"scores": [1]}', "{", "null"):
            (folder / name).write_text(odd)
            with contextlib.suppress(ValueError):
                publish(folder)
                continue
            with pytest.raises(ValueError, match=ONE_LINE):
                publish(folder)
        (folder / name).write_text(whole)


def test_mistakes_of_the_command(hub, run, monkeypatch, capsys, tmp_path):
    """Each is one line and exit code 2."""
    monkeypatch.chdir(tmp_path)
    for arguments, said in (
        (["push"], "RUN is missing"),
        (["push", "nowhere", "me/model"], "is not a run folder"),
        (["push", "latest", "me/model"], "there is no run"),
        (["push", str(run[0]), "me/model"], "does not accept the token"),
        (["push", str(run[0]), "me/mo del"], "cannot be the name of a model"),
    ):
        assert main(arguments) == 2
        told = capsys.readouterr().err
        assert said in told
        assert told.count("\n") == 1
