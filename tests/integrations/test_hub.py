"""Models on the Hub and back, by a Hub on 127.0.0.1; nothing else is ever asked."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

pytest.importorskip("huggingface_hub", reason="the extra `hub` is not installed")

from hub_models import ONE_LINE, equal, leftovers, model
from hub_server import TOKEN, sha256
from huggingface_hub import constants

from foveal.models import Model, TransformerLM, load_model

# huggingface_hub 2.4.0 uploads by a keyword that its client has deprecated
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

SAVED = Path(__file__).parents[1] / "models" / "saved"

# -- there and back ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.name for path in SAVED.iterdir() if path.is_dir()))
def test_every_family_comes_back_bit_for_bit(name, hub):
    """What is pushed is what is opened, in its dtype, a DALLE with its VAE; by two downloads."""
    one = load_model(SAVED / name)
    commit = one.push_to_hub("me/model", token=TOKEN)
    assert commit.oid == hub.repos["me/model"].refs["main"]
    assert set(hub.files("me/model")) == {
        *(".gitattributes", "README.md", "config.json", "model.safetensors"),
    }
    hub.asked.clear()
    again = load_model("me/model")
    assert equal(again, one)
    assert not again.training
    got = [line for line in hub.asked if line.startswith("GET") and "harnesses" not in line]
    assert len(got) == 2
    assert all("config.json" in line or "/cdn/" in line for line in got)
    assert type(one).from_pretrained("me/model", local_files_only=True).settings == one.settings


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_dtype_comes_back(dtype, hub):
    """Weights keep their dtype; tied ones stay one."""
    one = model(dtype=dtype, tie_embeddings=True)
    one.push_to_hub("me/model", token=TOKEN)
    again = TransformerLM.from_pretrained("me/model")
    assert equal(again, one)
    assert again.num_parameters == one.num_parameters


def test_revisions(hub, tmp_path):
    """A commit, a branch, a tag and a pull request are opened as they were."""
    first, second, third, fourth = (model(seed) for seed in range(4))
    oid = first.push_to_hub("me/model", token=TOKEN).oid
    hub.repos["me/model"].refs["v1.0"] = oid
    second.push_to_hub("me/model", token=TOKEN, commit_message="better")
    first.push_to_hub("me/model", token=TOKEN, branch="wide")
    third.push_to_hub("me/model", token=TOKEN, revision="wide")
    asked = fourth.push_to_hub("me/model", token=TOKEN, create_pr=True)
    assert hub.repos["me/model"].messages[1:3] == ["Upload TransformerLM with foveal", "better"]
    expected = {None: second, "main": second, "v1.0": first, oid: first, "wide": third}
    for revision, one in {**expected, asked.pr_revision: fourth}.items():
        assert equal(load_model("me/model", revision=revision), one), revision
    with pytest.raises(FileNotFoundError, match=r"no branch, tag or commit 'v2'"):
        load_model("me/model", revision="v2")
    again = model(5)
    again.push_to_hub("me/model", token=TOKEN)  # the cache of main is of an older one
    assert equal(load_model("me/model"), again)


def test_a_folder_wins(hub, tmp_path, monkeypatch):
    """A folder that is called like a model of the Hub is opened, as ever, and nobody is asked."""
    monkeypatch.chdir(tmp_path)
    model(0).push_to_hub("me/model", token=TOKEN)
    model(1).save_pretrained("me/model")
    hub.asked.clear()
    assert equal(load_model("me/model"), model(1))
    assert equal(Model.from_pretrained("me/model", local_files_only=True), model(1))
    with pytest.raises(ValueError, match="revision='v1' is for a model on the Hub"):
        load_model("me/model", revision="v1")
    with pytest.raises(FileNotFoundError, match="or user/name of a model on the Hub"):
        load_model(Path("me/other"))  # a path is never a name
    assert not hub.asked


def test_a_folder_needs_no_package(tmp_path, after_torch):
    """Opening and saving in folders loads no huggingface_hub; without it the extra is named."""
    model().save_pretrained(tmp_path / "saved")
    code = f"""
import sys, foveal
foveal.load_model({str(tmp_path / "saved")!r}).save_pretrained({str(tmp_path / "again")!r})
print("huggingface_hub" in sys.modules, "foveal.integrations" in sys.modules)
sys.modules["huggingface_hub"] = None
for ask in (lambda: foveal.load_model("me/model"), lambda: foveal.load_model(
    {str(tmp_path / "saved")!r}).push_to_hub("me/model")):
    try:
        ask()
    except ModuleNotFoundError as error:
        print(error)
"""
    told = after_torch(code).splitlines()
    assert told[0] == "False False"
    assert len(told) == 3
    assert all("not installed: pip install 'foveal[hub]'" in line for line in told[1:])
    assert told[1].startswith("there is no folder 'me/model' here, and opening it from the Hub")


# -- without a network --------------------------------------------------------------------------


def test_offline(hub, monkeypatch):
    """What was downloaded opens without a network; what was not is told in one line."""
    one = model()
    one.push_to_hub("me/model", token=TOKEN)
    load_model("me/model")
    hub.asked.clear()
    assert equal(load_model("me/model", local_files_only=True), one)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert equal(load_model("me/model"), one)
    for name, options in {"me/other": {}, "me/model": {"revision": "v1"}}.items():
        with pytest.raises(FileNotFoundError, match="has not been downloaded before"):
            load_model(name, **options)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE=1"):
        one.push_to_hub("me/model", token=TOKEN)
    assert not hub.asked


def test_a_hub_that_does_not_answer(hub, monkeypatch):
    """Where it is down, what was downloaded opens; what was not is told in one line."""
    one = model()
    one.push_to_hub("me/model", token=TOKEN)
    load_model("me/model")
    hub.fault = lambda line: 503
    assert equal(load_model("me/model"), one)
    with pytest.raises(ConnectionError, match=r"answers with status 503"):
        load_model("me/other")
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "ENDPOINT", nowhere)
    template = nowhere + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    assert equal(load_model("me/model"), one)
    with pytest.raises(ConnectionError, match=r"9\) cannot be reached \(.*refused"):
        load_model("me/other")


# -- interrupted --------------------------------------------------------------------------------


def test_a_download_that_is_cut_goes_on(hub):
    """The connection breaks in the middle of the weights: the rest is fetched, and fits."""
    one = model(dim=64)
    one.push_to_hub("me/model", token=TOKEN)
    cuts = iter([("cut", 1000), ("cut", 3)])
    hub.fault = lambda line: next(cuts, None) if line.startswith("GET /cdn/") else None
    assert equal(load_model("me/model"), one)
    assert next(cuts, None) is None


@pytest.mark.parametrize("what", ["config", "weights"])
def test_a_download_that_breaks_leaves_nothing(what, hub, tmp_path):
    """The connection breaks again and again: one line, nothing half-written, and the next fits."""
    one = model(dim=64)
    one.push_to_hub("me/model", token=TOKEN)
    line = {"config": "GET /me/model/resolve", "weights": "GET /cdn/"}[what]
    hub.fault = lambda asked: ("cut", 0) if asked.startswith(line) else None
    with pytest.raises(ConnectionError, match=r"broke for me/model .*try again") as caught:
        load_model("me/model")
    assert "\n" not in str(caught.value)
    assert not leftovers(tmp_path / "cache")
    hub.fault = lambda asked: None
    assert equal(load_model("me/model"), one)


def test_a_killed_download(hub, tmp_path, after_torch):
    """A process that is killed while it downloads leaves nothing that the next one takes."""
    one = model(dim=64)
    one.push_to_hub("me/model", token=TOKEN)
    cache, process, halves = tmp_path / "cache", tmp_path / "process", []

    def kill(line):
        if line.startswith("GET /cdn/") and not halves:
            halves.extend(cache.rglob("*.incomplete"))
            os.kill(int(process.read_text()), signal.SIGKILL)

    hub.fault = kill
    environment = {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HOME": str(tmp_path),
        "FOVEAL_NATIVE": "0",  # nothing is to be compiled in a home without one
    }
    code = f"""
import foveal, os, pathlib
pathlib.Path({str(process)!r}).write_text(str(os.getpid()))
foveal.load_model("me/model")
"""
    with pytest.raises(AssertionError) as said:  # it did not end by itself
        after_torch(code, environment)
    assert len(halves) == 1, str(said.value)
    snapshots = list(cache.rglob("snapshots/*/*"))
    assert [path.name for path in snapshots] == ["config.json"]
    assert equal(load_model("me/model"), one)


def test_what_arrives_damaged_is_not_kept(hub):
    """Weights of the right size and other bits are noticed, and downloaded anew the next time."""
    one = model()
    one.push_to_hub("me/model", token=TOKEN)
    raw = hub.files("me/model")["model.safetensors"]
    hub.objects[sha256(raw)] = raw[:-1] + bytes([raw[-1] ^ 1])
    with pytest.raises(ConnectionError, match=r"model\.safetensors arrived damaged"):
        load_model("me/model")
    hub.objects[sha256(raw)] = raw
    assert equal(load_model("me/model"), one)


def test_a_cache_that_is_damaged(hub, tmp_path):
    """A file that was spoilt in the cache is named, with what mends it; and that does."""
    one = model()
    one.push_to_hub("me/model", token=TOKEN)
    load_model("me/model")
    for name in ("config.json", "model.safetensors"):
        for snapshot in (tmp_path / "cache").rglob(f"snapshots/*/{name}"):
            kept = snapshot.resolve()
            kept.write_bytes(kept.read_bytes()[:-3])
        with pytest.raises(ValueError, match=rf"{name} is .*force_download=True downloads it"):
            load_model("me/model")
        assert equal(load_model("me/model", force_download=True), one)


@pytest.mark.parametrize("line", ["PUT /lfs/", "POST /verify", "POST /api/models/me/model/commit"])
@pytest.mark.parametrize("fault", [("cut", 100), 500])
def test_an_interrupted_upload_is_no_commit(line, fault, hub):
    """Wherever it breaks, the repository is as it was, and the next upload has all of it."""
    first, second = model(0), model(1)
    first.push_to_hub("me/model", token=TOKEN)
    before = hub.files("me/model")
    hub.fault = lambda asked: fault if asked.startswith(line) else None
    with pytest.raises(ConnectionError, match=ONE_LINE) as caught:
        second.push_to_hub("me/model", token=TOKEN)
    assert TOKEN not in str(caught.value)
    assert hub.files("me/model") == before
    hub.fault = lambda asked: None
    assert equal(load_model("me/model"), first)
    second.push_to_hub("me/model", token=TOKEN)
    assert equal(load_model("me/model"), second)


def test_many_at_once(hub):
    """Threads that open one model share a cache, and each has the whole of it."""
    one = model(dim=64)
    one.push_to_hub("me/model", token=TOKEN)
    with ThreadPoolExecutor(4) as pool:
        assert all(equal(again, one) for again in pool.map(load_model, ["me/model"] * 8))


def test_an_upload_meanwhile(hub):
    """Configuration and weights are of one commit, whoever uploads between the two."""
    first, second = model(0), model(1, dim=16)
    first.push_to_hub("me/model", token=TOKEN)
    left = [second]

    def upload(line):
        if left and line.startswith("HEAD") and "model.safetensors" in line:
            left.pop().push_to_hub("me/model", token=TOKEN)

    hub.fault = upload
    assert equal(load_model("me/model"), first)
    assert not left
    assert equal(load_model("me/model"), second)
