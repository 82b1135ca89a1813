"""foveal export, and predict and generate with what it wrote."""

import json
import os

import pytest
import torch
from malformed import refuse, tree

from foveal import export
from foveal.cli import main


def run(capsys, *arguments):
    """What a command prints that must succeed."""
    assert main(list(map(str, arguments))) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_a_run_of_text(work, capsys, monkeypatch):
    """A program of a run: where it is put, what is told of it, and that it writes as the model
    does; a program of another model, of other weights and of other lengths is told as such."""
    before = tree(work)
    printed = run(capsys, "export", "text-run", "--batch", "1", "--length", "1-15")
    assert printed.startswith("text-run/model.pt2  ")
    assert "int64 (batch 1, length 1 to 15), each below 256" in printed
    assert "from the model by" in printed
    assert set(tree(work)) - set(before) == {"text-run/model.pt2"}

    printed = run(capsys, "generate", "text-run", "--prompt", "the ", "--length", "9",
                  "--with", "text-run/model.pt2")  # fmt: skip
    assert printed.startswith("model     the ")
    assert "all 9 tokens are the same" in printed
    assert "logits differ by" in printed
    assert "other weights" not in printed
    assert set(tree(work)) - set(before) == {"text-run/model.pt2"}  # no sample, no report
    # sampled, as the line above is not
    sampling = ["--temperature", "1", "--seed", "3", "--top-k", "5"]
    found = json.loads(run(capsys, "generate", "text-run", "--prompt", "th", "--length", "9",
                           "--with", "text-run/model.pt2", "--json", *sampling))  # fmt: skip
    assert found["model"] == found["exported"]
    assert (found["equal"], found["tokens"], found["margin"]) == (9, 9, None)
    assert found["difference"] < 1e-4

    def told(*words):
        """The refusal of `foveal generate` with a program."""
        line = refuse(capsys, work, ["generate", "text-run", "--prompt", "the ", *words])
        assert "Traceback" not in line
        return line

    line = told("--length", "15", "--with", "text-run/model.pt2")
    assert "length must be at least 1 and below" in line
    assert "must be a file that exists" in told("--with", "none.pt2")
    assert "the home of a user" in told("--with", "~nobody-here/a.pt2")
    assert "is a folder" in told("--with", "text-run")
    assert "text.txt" in told("--with", "text.txt")
    whole = (work / "text-run/model.pt2").read_bytes()
    for content in (whole[:2000], b"", b"\x80\x04.", b"text"):
        (work / "bad.pt2").write_bytes(content)
        assert "is damaged or no program of foveal" in told("--with", "bad.pt2")
    torch.save({"a": torch.ones(1)}, work / "weights.pt2")
    assert "is damaged or no program of foveal" in told("--with", "weights.pt2")

    program, about = export.load(work / "text-run/model.pt2")
    rewrite(program, {**about, "weights": "of others"}, work / "later.pt2")
    printed = run(
        capsys, "generate", "text-run", "--prompt", "t", "--length", "5", "--with", "later.pt2"
    )
    assert "exported from other weights" in printed
    config = {**about["config"], "dim": about["config"]["dim"] + 8}
    rewrite(program, {**about, "config": config}, work / "other.pt2")
    with monkeypatch.context() as patch:  # told of what it says of itself, without loading it
        patch.setattr(torch.export, "load", pytest.fail)
        assert "was exported from another model: its dim" in told("--with", "other.pt2")
    line = refuse(capsys, work, ["predict", "pictures-run", "good.png", "--with", "other.pt2"])
    assert "another model: it is a 'transformer', and the run's a 'halonet'" in line


def rewrite(program, about, path):
    """A program with another note of what it is."""
    torch.export.save(program, path, extra_files={"foveal.json": json.dumps(about)})


def test_a_run_of_pictures(work, capsys):
    """As ONNX: the same classes, probabilities and logits; a saved model is exported likewise."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    arguments = ["export", "pictures-run", "--out", "net.onnx", "--json"]  # pictures as the run's
    found = json.loads(run(capsys, *arguments))
    assert (found["path"], found["format"]) == ("net.onnx", "onnx")
    assert found["bytes"] == os.path.getsize("net.onnx")
    assert found["about"]["deviation"] < 1e-4
    assert found["about"]["inputs"][0]["sizes"] == ["batch", "channels", "height", "width"]
    assert found["about"]["inputs"][0]["shape"][2:] == [8, 8]
    printed = run(capsys, "predict", "pictures-run", "good.png", "--with", "net.onnx")
    assert "  model  exported" in printed
    assert "logits differ by" in printed
    (one,) = json.loads(
        run(capsys, "predict", "pictures-run", "good.png", "--with", "net.onnx", "--json")
    )
    shares = {each["class"]: each["probability"] for each in one["ranking"]}
    assert one["exported"]["shares"] == pytest.approx(shares, abs=1e-4)
    assert one["exported"]["difference"] < 1e-4
    assert one["exported"]["same_weights"] is True
    refused = refuse(capsys, work, ["generate", "pictures-run", "--with", "net.onnx"])
    assert "generate needs a run of the task 'bytes'" in refused


REFUSED = [
    (["nowhere"], "run='nowhere' is not a run folder"),
    (["~nobody-here/run"], "the home of a user whom this machine does not know"),
    (["text-run", "--out", "~nobody-here/a.pt2"], "the home of a user"),
    (["latest"], "no run under runs"),
    ([], "RUN is missing"),
    (["text-run", "--format", "onxn"], "did you mean 'onnx'?"),
    (["text-run", "--out", "model.txt"], "out must end in .pt2 or .onnx"),
    (["text-run", "--out", "a.onnx", "--format", "torch"], "ends as a file of format onnx does"),
    (["text-run", "--out", "no/where.pt2"], "folder of out='no/where.pt2' does not exist"),
    (["text-run", "--out", "folder.pt2"], "is a folder; name a file"),
    (["text-run", "--length", "many"], "--length must be a number or a range"),
    (["text-run", "--length", "9-2"], "--length must begin with the smaller number"),
    (["text-run", "--length", "0"], "length must be a positive int"),
    (["text-run", "--length", "1-9999999"], "length must be at most"),
    (["text-run", "--size", "8"], "sees no pictures"),
    (["pictures-run", "--length", "8"], "reads no tokens"),
    (["pictures-run", "--size", "8x8x8"], "--size must be height x width"),
    (["pictures-run", "--mask"], "reads no tokens, got mask=True"),
    (["empty-run"], "no checkpoint"),
    (["other-run"], "must be a model of foveal"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED)
def test_mistakes_are_told_in_one_line(arguments, words, work, capsys, monkeypatch):
    """And nothing is written."""
    (work / "folder.pt2").mkdir()
    (work / "empty-run").mkdir()
    (work / "empty-run/config.json").write_bytes((work / "text-run/config.json").read_bytes())
    if arguments == ["other-run"]:
        (work / "text-run").rename(work / "other-run")
        own = torch.nn.Linear(2, 2)
        monkeypatch.setattr("foveal.recipes.exporting.open_model", lambda *_: (own, "step"))
    assert words in refuse(capsys, work, ["export", *arguments])


def test_without_the_packages(work, capsys, monkeypatch):
    """ONNX needs the extra onnx, which is named."""
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    line = refuse(capsys, work, ["export", "text-run", "--format", "onnx"])
    assert "pip install 'foveal[onnx]'" in line
