"""Models on the Hub and back, by a Hub on 127.0.0.1; nothing else is ever asked."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("huggingface_hub", reason="the extra `hub` is not installed")

from hub_server import TOKEN, Hub, Repo, sha256
from huggingface_hub import ModelCard, close_session, constants

import foveal
from foveal.cli import main
from foveal.integrations.hub import Card, write_card
from foveal.models import Model, TransformerLM, load_model, storage
from foveal.recipes.publish import publish

# huggingface_hub 2.4.0 uploads by a keyword that its client has deprecated
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

SAVED = Path(__file__).parents[1] / "models" / "saved"
SMALL = {"dim": 8, "depth": 1, "heads": 2, "dim_head": 4, "num_tokens": 5}
ONE_LINE = r"\A[^\n]{20,}\Z"


@pytest.fixture(autouse=True)
def at_home(monkeypatch):
    """Nothing beyond this machine is connected to."""
    connect = socket.socket.connect

    def guarded(self, address):
        host = address[0] if isinstance(address, tuple) else "127.0.0.1"
        assert host in ("127.0.0.1", "::1", "localhost"), f"{address} is not on this machine"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="module")
def server():
    """A Hub, which huggingface_hub asks in place of the real one."""
    with Hub() as started, pytest.MonkeyPatch.context() as patch:
        settings = {
            "ENDPOINT": started.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": started.url
            + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_TELEMETRY": True,
        }
        for name, value in settings.items():
            patch.setattr(constants, name, value)
        for module in ("huggingface_hub.file_download", "huggingface_hub.utils._http"):
            patch.setattr(f"{module}.time", patient())
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            patch.delenv(name, raising=False)
        close_session()
        yield started
        close_session()


@pytest.fixture
def hub(server, monkeypatch, tmp_path):
    """The same with nothing in it, and a cache of its own."""
    server.reset()
    places = {"HF_HUB_CACHE": "cache", "HF_TOKEN_PATH": "token", "HF_STORED_TOKENS_PATH": "tokens"}
    for name, place in {**places, "AGENT_HARNESSES_PATH": "harnesses.json"}.items():
        monkeypatch.setattr(constants, name, str(tmp_path / place))
    return server


def patient():
    """The module `time`, whose sleep takes none."""
    return SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})


def model(seed=0, dtype=torch.float32, **options):
    torch.manual_seed(seed)
    return TransformerLM(**{**SMALL, **options}).to(dtype).eval()


def equal(one, other):
    """Whether two models are the same: configuration, names, dtypes and every bit."""
    left, right = one.state_dict(), other.state_dict()
    assert list(left) == list(right)
    return type(one) is type(other) and one.settings == other.settings and all(
        left[name].dtype == right[name].dtype and left[name].equal(right[name]) for name in left
    )  # fmt: skip


def saved(one, folder) -> dict[str, bytes]:
    """The files of a model, for `Hub.put`."""
    one.save_pretrained(folder)
    return {
        "config_json": (folder / "config.json").read_bytes(),
        "model_safetensors": (folder / "model.safetensors").read_bytes(),
    }


def leftovers(folder: Path) -> list[Path]:
    """What a cache holds besides whole files, and files that are not what they are called."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    odd = [path for path in files if path.suffix == ".incomplete"]
    large = [path for path in files if len(path.name) == 64]
    return odd + [path for path in large if sha256(path.read_bytes()) != path.name]


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
    assert len(halves) == 1, said.value
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


# -- what is refused ----------------------------------------------------------------------------

STRANGERS = {
    "transformers": ({"model_type": "llama"}, r"of transformers \(llama\)"),
    "transformers, older": ({"architectures": ["Bert"]}, r"of transformers: .*AutoModel"),
    "diffusers": ({"_class_name": "VQModel", "_diffusers_version": "1"}, r"diffusers\.VQModel"),
    "timm": ({"architecture": "halonet26t", "num_classes": 9}, r"timm\.create_model.*load_ups"),
    "unknown": ({"a": 1}, r"names no family.*load_upstream"),
    "empty": ({}, "names no family"),
    "a list": ([1, 2], "damaged or not a foveal configuration"),
    "a number": (3, "damaged or not a foveal configuration"),
    "a class": ({"family": "torch.nn:Linear", "config": {}}, "unknown model family"),
    "a function": ({"family": "load_upstream", "config": {}}, "unknown model family"),
    "a file's reader": ({"family": "read_checkpoint", "config": {}}, "unknown model family"),
    "a module": ({"family": "os", "config": {"system": "ls"}}, "unknown model family"),
    "a lambda": ({"family": "transformer", "config": {"pattern": "print(1)"}}, "unknown pattern"),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_configurations_of_others(kind, hub):
    """Whatever config.json holds, it is one helpful line, before any weights are downloaded."""
    content, said = STRANGERS[kind]
    hub.put("some/model", config_json=json.dumps(content).encode(), model_safetensors=b"x" * 99)
    with pytest.raises(ValueError, match=said) as caught:
        load_model("some/model")
    assert "\n" not in str(caught.value)
    assert not any("model.safetensors" in line for line in hub.asked)


FILES = {
    "nothing": ({}, r"has no config\.json; it is empty"),
    "pickle": ({"pytorch_model_bin": b"\x80"}, r"pytorch_model\.bin is a pickle.*not opened"),
    "checkpoint": ({"last_ckpt": b"PK"}, r"last\.ckpt is a pickle.*load_upstream"),
    "pipeline": ({"model_index_json": b"{}"}, "of diffusers"),
    "clip": ({"open_clip_config_json": b"{}"}, "of open_clip"),
    "texts": (
        {"README_md": b"#", "a_txt": b"", "b_txt": b"", "c_txt": b""},
        r"README\.md, a\.txt",
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_repositories_of_others(kind, hub):
    """A repository without config.json is told by its files, none of which is downloaded."""
    files, said = FILES[kind]
    hub.put("some/model", **files)
    with pytest.raises(FileNotFoundError, match=said) as caught:
        load_model("some/model")
    assert "\n" not in str(caught.value)
    assert not any(line.startswith("GET") and "/resolve/" in line for line in hub.asked)


def test_weights_that_are_not_there(hub, tmp_path):
    """Without model.safetensors it is told what there is in its place; a pickle is left alone."""
    files = saved(model(), tmp_path / "saved")
    config = files["config_json"]
    hub.put("some/pickle", config_json=config, pytorch_model_bin=b"cos\nsystem\n(S'x'\ntR.")
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors: pytorch_model\.bin is a"):
        load_model("some/pickle")
    hub.put("some/parts", config_json=config)
    parts = {"model.safetensors.index.json": b"{}"}
    hub.repos["some/parts"].commit("main", parts)
    with pytest.raises(FileNotFoundError, match="weights are in several files"):
        load_model("some/parts")
    assert not any("/cdn/" in line or "pytorch_model" in line for line in hub.asked)


def test_weights_that_do_not_fit(hub, tmp_path):
    """Missing, surplus, misshapen and damaged weights are named."""
    files = saved(model(), tmp_path / "saved")
    raw = files["model_safetensors"]
    other = saved(model(dim=12), tmp_path / "other")["model_safetensors"]
    more = saved(model(depth=2), tmp_path / "more")["model_safetensors"]
    less = saved(model(tie_embeddings=True), tmp_path / "less")["model_safetensors"]
    for weights, said in {
        raw[:-9]: "truncated or damaged",
        raw[:5]: "truncated or damaged",
        b"": "truncated or damaged",
        b"\xff" * 64: "truncated or damaged",
        other: r"has shape \(5, 12\), expected \(5, 8\)",
        more: "is not part of the model",
        less: "is missing",
    }.items():
        hub.put("some/model", **{**files, "model_safetensors": weights})
        with pytest.raises(ValueError, match=said) as caught:
            load_model("some/model")
        assert "\n" not in str(caught.value)


def test_files_that_are_too_large_are_not_downloaded(hub, tmp_path, monkeypatch):
    """No configuration is so large, and no weights of such a model; both are left there."""
    files = saved(model(), tmp_path / "saved")
    huge = saved(model(dim=64, depth=3), tmp_path / "huge")["model_safetensors"]
    monkeypatch.setattr(storage, "_MOST_HEADER", 1000)
    hub.put("some/model", config_json=files["config_json"], model_safetensors=huge)
    with pytest.raises(
        ValueError, match=r"model\.safetensors of some/model has [\d,]+ bytes, but"
    ):
        load_model("some/model")
    monkeypatch.setattr(storage, "_MOST_CONFIG", 9)
    with pytest.raises(ValueError, match=r"config\.json of some/model has [\d,]+ bytes, but at"):
        load_model("some/model", force_download=True)
    assert sum(line.startswith("GET") and "harnesses" not in line for line in hub.asked) == 1


@pytest.mark.parametrize(
    "name", ["me/a--b", "me/a..b", "me/model.git", "m" * 97 + "/model", "me/" + "x" * 97]
)
def test_names_that_the_hub_cannot_have(name, hub):
    """One line, and nobody is asked; both ways."""
    for ask in (lambda: load_model(name), lambda: model().push_to_hub(name, token=TOKEN)):
        with pytest.raises(
            ValueError, match=r"cannot be the name of a model on the Hub: [^\n]+\Z"
        ):
            ask()
    assert not hub.asked


@pytest.mark.parametrize("name", ["a/b/c", "me model", "me/", "/me/model", "../me/model", "me/ü"])
def test_names_that_are_none(name, hub):
    """What is no user/name is a folder, which is not there."""
    with pytest.raises(FileNotFoundError, match="does not exist; expected a folder"):
        load_model(name)
    with pytest.raises(ValueError, match="is no name like user/name"):
        load_model(name, revision="main")
    assert not hub.asked


def test_who_may_look(hub):
    """Private, gated, forbidden, a wrong token, a busy Hub: each is one line that says why."""
    one = model()
    one.push_to_hub("me/model", private=True, token=TOKEN)
    assert hub.repos["me/model"].private
    assert equal(load_model("me/model", token=TOKEN), one)
    hub.repos["some/gated"] = Repo(gated=True)
    hub.repos["some/gated"].commit("main", hub.files("me/model"))
    for name, token, kind, said in (
        (
            "some/none",
            None,
            FileNotFoundError,
            r"no folder 'some/none' here, and there is no model",
        ),
        ("some/none", TOKEN, FileNotFoundError, "there is no model 'some/none' on the Hub"),
        ("some/gated", None, PermissionError, r"gated: ask for access at http.*/some/gated"),
        ("some/gated", "hf_wrong", PermissionError, "does not accept the token"),
    ):
        with pytest.raises(kind, match=said) as caught:
            load_model(name, token=token)
        assert "\n" not in str(caught.value)
        assert "hf_wrong" not in str(caught.value)
    for status, kind in {403: PermissionError, 429: ConnectionError, 502: ConnectionError}.items():
        hub.fault = lambda line, status=status: status if "some/none" in line else None
        with pytest.raises(kind, match=ONE_LINE):
            load_model("some/none")


def test_who_may_upload(hub):
    """Without a token, with a wrong one, or for others: one line, and nothing is there."""
    for name, token, kind, said in (
        ("me/model", False, PermissionError, "does not accept the token"),
        ("me/model", "hf_wrong", PermissionError, "does not accept the token"),
        ("them/model", TOKEN, PermissionError, "the rights to create a model under them/model"),
    ):
        with pytest.raises(kind, match=said) as caught:
            model().push_to_hub(name, token=token)
        assert "\n" not in str(caught.value)
    assert not hub.repos


def test_nothing_private_is_published(hub):
    """A public repository takes nothing that shall be private, nor the other way round."""
    model().push_to_hub("me/model", token=TOKEN)
    before = hub.files("me/model")
    with pytest.raises(ValueError, match=r"me/model is there and public.*nothing was uploaded"):
        model(1).push_to_hub("me/model", private=True, token=TOKEN)
    assert hub.files("me/model") == before
    model(1).push_to_hub("me/model", private=False, token=TOKEN)


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
