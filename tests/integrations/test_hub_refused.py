"""What is no model of foveal on the Hub, or not for everybody, and what is said of it."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("huggingface_hub", reason="the extra `hub` is not installed")

from hub_models import ONE_LINE, equal, model, saved
from hub_server import TOKEN, Repo

from foveal.models import load_model, storage

# huggingface_hub 2.4.0 uploads by a keyword that its client has deprecated
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

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
