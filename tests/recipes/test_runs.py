"""A run from recipe to report: train, evaluate, generate, and what the folder then holds."""

import dataclasses
import gzip
import json
import math
import shutil

import pytest
import torch

from foveal.data import open_corpus
from foveal.data.corpus import Corpus
from foveal.recipes.bytes.kind import score_windows
from foveal.recipes.bytes.writing import continue_text
from foveal.recipes.config import load_recipe
from foveal.recipes.publish import publish
from foveal.recipes.report import pictures_of, write_run_report
from foveal.recipes.run import evaluate, generate, train
from foveal.recipes.runs import choose_folder, find_run, load_config, load_model
from foveal.training.checkpoints import CheckpointError


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_recipe):
    """The folder of a finished run and its text."""
    folder = tmp_path_factory.mktemp("trained")
    text = folder / "text.txt"
    text.write_bytes(b"the quick brown fox jumps over the lazy dog. " * 60)
    recipe = folder / "tiny.toml"
    recipe.write_text(
        tiny_recipe.format(data=text.as_posix()).replace("steps = 24", "steps = 120")
    )
    run, outcome = train(load_recipe(str(recipe)), output=str(folder / "run"))
    assert outcome.step == 120
    return run, text


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the finished run that a test may change."""
    return shutil.copytree(trained[0], tmp_path / "run")


def test_a_run_folder_ends_complete(trained):
    """Report, pictures, metrics, samples, configuration and result are all there."""
    run, _ = trained
    names = {path.name for path in run.iterdir()}
    assert names >= {
        *("report.html", "pictures", "metrics.jsonl", "samples.json", "config.json"),
        *("result.json", "checkpoints", "tensorboard"),
    }
    assert {path.name for path in pictures_of(run)} == {"pattern-0.png", "training.png"}
    report = (run / "report.html").read_text()
    for words in ("SlidingWindow(window=8", "bits per byte", "torch", "learning_rate", "checksum"):
        assert words in report
    assert not list(run.rglob("*.partial"))


def test_what_a_run_tells_the_world(trained):
    """Its score, data and command are those that it ended with; no path is told."""
    run, text = trained
    result = json.loads((run / "result.json").read_text())
    about, files = publish(run)
    assert about["scores"] == {"bits_per_byte": result["bits_per_byte"]}
    assert about["scored_on"].startswith("text.txt, ")
    assert about["data"].startswith("text.txt, ")
    assert "checksum" in about["data"]
    assert about["command"] == "foveal train tiny.toml"
    assert list(files) == ["run.json"]
    assert str(text.parent) not in json.dumps([about, files])


def test_the_model_learnt_and_can_be_loaded_alone(trained):
    """The checkpoint is a model folder that `from_pretrained` reads."""
    from foveal.models import TransformerLM

    run, _ = trained
    result = json.loads((run / "result.json").read_text())
    assert result["bits_per_byte"] < 4.0
    model, last = load_model(run, load_config(run))
    alone = TransformerLM.from_pretrained(last)
    tokens = torch.arange(16)[None]
    assert torch.equal(model(tokens), alone(tokens))


def test_evaluation_stands_beside_compressors_on_the_same_bytes(run, trained):
    """The score is that of the held-out bytes, and gzip saw exactly these."""
    result = evaluate(run)
    _, held_out = open_corpus(str(trained[1]))
    raw = held_out.read(0, len(held_out)).tobytes()
    assert result["bytes"] == len(raw)
    assert result["gzip"] == 8 * len(gzip.compress(raw, 9)) / len(raw)
    assert result.checksum == held_out.checksum()
    assert result["bits_per_byte"] == pytest.approx(
        json.loads((run / "result.json").read_text())["bits_per_byte"], rel=1e-5
    )
    assert "gzip -9" in (run / "report.html").read_text()
    assert evaluate(run, max_bytes=100)["bytes"] == 100


def test_bits_per_byte_are_mean_negative_log_probabilities(trained):
    """The score equals its definition, computed byte by byte; a stride only adds history."""
    run, text = trained
    model, _ = load_model(run, load_config(run))
    _, corpus = open_corpus(str(text))
    data = torch.from_numpy(corpus.read(0, 50).copy()).long()
    (span,) = corpus.spans
    head = Corpus("start", [dataclasses.replace(span, stop=span.start + 50)])
    bits = 0.0
    for i in range(1, 50):
        start = (i - 1) // 16 * 16
        logits = model(data[None, start:i])[0, -1].detach()
        bits -= float(logits.log_softmax(-1)[data[i]]) / math.log(2)
    with torch.no_grad():
        total, count = score_windows(model, head, 16)["bits_per_byte"]
    assert count == 49
    assert total == pytest.approx(bits, rel=1e-4)


def test_generation_is_kept_for_the_report(run):
    """The same seed writes the same text, and the report shows it."""
    one, two = (generate(run, "the ", 40, seed=3, temperature=0.5) for _ in range(2))
    assert one.text == two.text
    assert one.tokens == 40
    samples = json.loads((run / "samples.json").read_text())
    assert samples[-1]["text"] == one.text
    assert "the " in (run / "report.html").read_text()


def test_generation_goes_on_beyond_the_context(trained):
    """A model of 16 bytes writes any number of them, keeping the end in view."""
    run, _ = trained
    config = load_config(run)
    model, _ = load_model(run, config)
    written = continue_text(model, "the quick ", 77, max_seq_len=16, seed=0, temperature=0.0)
    assert len(written.text.encode()) == 77


@pytest.mark.parametrize(
    ("prompt", "length", "words"),
    [
        ("x", 0, "length must be at least 1"),
        ("x", -3, "length must be at least 1"),
        ("x", 10**12, "at most 1,000,000"),
    ],
)
def test_senseless_lengths_are_named(trained, prompt, length, words):
    """Nothing to write, and more than anybody waits for, are one line."""
    run, _ = trained
    model, _ = load_model(run, load_config(run))
    with pytest.raises(ValueError, match=words):
        continue_text(model, prompt, length, max_seq_len=16)


def test_any_prompt_is_continued(trained):
    """An empty one stands for the beginning of a line; of a long one the end is seen."""
    run, _ = trained
    model, _ = load_model(run, load_config(run))
    options = {"max_seq_len": 16, "temperature": 0.0}
    empty, line = (continue_text(model, prompt, 20, **options) for prompt in ("", "\n"))
    assert (empty.text, empty.prompt) == (line.text, "")
    ends = [continue_text(model, start + "fox jumps over", 20, **options) for start in "ab"]
    assert ends[0].text == ends[1].text
    long = continue_text(model, "x" * 5000 + "fox jumps over", 20, **options)
    assert long.text == continue_text(model, "x" * 50 + "fox jumps over", 20, **options).text


def test_a_report_tells_the_newest_score(run):
    """A score of a checkpoint that training has left behind is not that of the run."""
    write_run_report(run)
    final = json.loads((run / "result.json").read_text())["bits_per_byte"]
    card = "<b>{:.3f}</b>"
    evaluation = evaluate(run, max_bytes=100).to_dict()
    for step, bits, shown in [(119, 7.125, final), (120, 6.125, 6.125), (121, 5.125, 5.125)]:
        changed = {**evaluation, "bits_per_byte": bits, "checkpoint": f"step-{step:08d}"}
        (run / "evaluation.json").write_text(json.dumps(changed))
        page = write_run_report(run).read_text()
        assert (card.format(shown) in page, card.format(bits) in page) == (True, shown == bits)


def test_a_sample_is_spread_over_the_data_and_named(trained):
    """Pieces from one end to the other, each byte once, of exactly the size that was asked for."""
    from foveal.data.corpus import sample_bytes
    from foveal.data.sampling import ALL

    _, text = trained
    corpus, _ = open_corpus(str(text))
    for most in (2, 17, 160, 999, len(corpus) - 1):
        part = sample_bytes(corpus, most)
        assert len(part) == most
        assert f"a sample of {most:,} of {len(corpus):,} bytes" in part.name
        whole = sample_bytes(Corpus(f"x{ALL}", corpus.spans), most)
        assert whole.name == f"x, a sample of {most:,} of {len(corpus):,} bytes"
        places = [position for span in part.spans for position in range(span.start, span.stop)]
        assert len(set(places)) == most or most > len(corpus) - 16
        assert places[0] == 0
        assert places[-1] == len(corpus) - 1
    assert sample_bytes(corpus, 0) is corpus
    assert sample_bytes(corpus, len(corpus)) is corpus


def test_a_truncated_only_checkpoint_is_named(run):
    """Evaluation of a run whose weights are cut says so."""
    shutil.rmtree(run / "checkpoints" / "step-00000114")
    weights = run / "checkpoints" / "step-00000120" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated"):
        evaluate(run)


def test_resuming_with_other_settings_is_refused(recipe, tmp_path, monkeypatch):
    """A run cannot go on with another model; more steps are welcome."""
    monkeypatch.setattr("foveal.recipes.run.write_run_report", lambda folder: None)
    output = str(tmp_path / "run")
    config = load_recipe(str(recipe))
    train(config, output)
    before = (tmp_path / "run" / "config.json").read_text()
    changed = recipe.read_text().replace("dim = 16", "dim = 32")
    recipe.write_text(changed)
    with pytest.raises(ValueError, match=r"another model\.dim"):
        train(load_recipe(str(recipe)), output, resume=True)
    assert (tmp_path / "run" / "config.json").read_text() == before
    recipe.write_text(changed.replace("dim = 32", "dim = 16").replace("steps = 24", "steps = 30"))
    _, outcome = train(load_recipe(str(recipe)), output, resume=True)
    assert outcome.step == 30


def test_folders_are_numbered_and_found(recipe, tmp_path, monkeypatch):
    """Runs get the next free number; 'latest' is the newest; resuming takes the last."""
    monkeypatch.chdir(tmp_path)
    config = load_recipe(str(recipe))
    with pytest.raises(ValueError, match="no run under runs"):
        find_run("latest")
    assert str(choose_folder(config, None, resume=True)) == "runs/tiny-001"
    for name in ("tiny-001", "tiny-002"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.json").write_text("{}")
    assert str(choose_folder(config, None, resume=False)) == "runs/tiny-003"
    assert str(choose_folder(config, None, resume=True)) == "runs/tiny-002"
    assert str(find_run("latest")) == "runs/tiny-002"
    with pytest.raises(ValueError, match="already holds a run; add --resume auto"):
        choose_folder(config, "runs/tiny-001", resume=False)
    with pytest.raises(ValueError, match="not a run folder"):
        find_run("runs")


def test_bad_data_leaves_nothing_behind(recipe, text, tmp_path):
    """A run that cannot start does not leave a folder."""
    output = tmp_path / "run"
    text.write_bytes(b"")
    with pytest.raises(ValueError, match="empty"):
        train(load_recipe(str(recipe)), str(output))
    text.write_bytes(b"short text")
    with pytest.raises(ValueError, match=r"9 bytes, but context=16 needs at least 17"):
        train(load_recipe(str(recipe)), str(output))
    assert not output.exists()
