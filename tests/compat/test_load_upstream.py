"""load_upstream: weights of public packages, their faults on request, and bad files."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from foveal.interop import list_upstreams, load_upstream, read_checkpoint
from foveal.layers import DSSA, HaloAttention
from foveal.models import SepVisionTransformer, SepViT, create_model
from foveal.testing import assert_close

HALO = {"block_size": 4, "halo_size": 2}


def halo_weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return HaloAttention(dim=12, dim_head=6, heads=2, **HALO).state_dict()


# -- halonet-pytorch ----------------------------------------------------------------------------


def test_halonet_pytorch(peer: Callable[[str], ModuleType]) -> None:
    """Left out, compat is the version on the package index; everything else is inferred."""
    theirs = peer("halonet_pytorch").HaloAttention(dim=12, dim_head=6, heads=2, **HALO)
    ours = load_upstream(theirs.state_dict(), config={"block_size": 4})
    assert isinstance(ours, HaloAttention)
    assert ours.padding == "mask"
    x = torch.randn(2, 12, 16, 12)
    assert_close(ours(x), theirs(x), 1e-5)


def inverted_oracle(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """halonet-pytorch 0.0.4 by its own steps: unfold, project, mask the wrong keys."""
    block, halo, heads = 4, 2, 2
    c, h, w = x.shape[1:]
    window = block + 2 * halo

    def windows(t: Tensor) -> Tensor:
        t = nn.functional.unfold(t, window, stride=block, padding=halo)
        return t.unflatten(1, (-1, window * window)).permute(0, 3, 2, 1)

    keys = windows(x) @ weights["to_kv.weight"].T
    k, v = (t.unflatten(-1, (heads, -1)).transpose(2, 3) for t in keys.chunk(2, -1))
    q = nn.functional.unfold(x, block, stride=block).unflatten(1, (c, -1)).permute(0, 3, 2, 1)
    q = (q @ weights["to_q.weight"].T).unflatten(-1, (heads, -1)).transpose(2, 3)
    scores = q @ k.mT * q.shape[-1] ** -0.5
    # positions change nothing here: keys of the padding all have value 0, those of an inner
    # window are all masked alike
    real = windows(torch.ones(1, 1, h, w, dtype=x.dtype))[..., 0].bool()
    scores = scores.masked_fill(real[:, :, None, None, :], -torch.finfo(x.dtype).max)
    out = (scores.softmax(-1) @ v).transpose(2, 3).flatten(3)
    out = out @ weights["to_out.weight"].T + weights["to_out.bias"]
    return nn.functional.fold(out.permute(0, 3, 2, 1).flatten(1, 2), (h, w), block, stride=block)


def test_halonet_pytorch_of_before() -> None:
    """compat="halonet-pytorch-0.0.4" reproduces the inverted mask; None corrects it."""
    weights = halo_weights()
    x = torch.randn(2, 12, 12, 16)
    options: dict[str, Any] = {"package": "halonet-pytorch", "config": HALO}
    old = load_upstream(weights, compat="halonet-pytorch-0.0.4", **options)
    assert_close(old(x), inverted_oracle(weights, x), 1e-5)
    corrected = load_upstream(weights, compat=None, **options)
    plain = HaloAttention(dim=12, dim_head=6, heads=2, **HALO)
    plain.load_state_dict(weights)
    assert_close(corrected(x), plain(x), 1e-6)


def test_config_must_fit_the_weights() -> None:
    """A keyword that contradicts the weights is named; a missing one is asked for."""
    weights = halo_weights()
    with pytest.raises(ValueError, match="heads=3 does not fit"):
        load_upstream(weights, config={**HALO, "heads": 3})
    with pytest.raises(ValueError, match="pass config=dict"):
        load_upstream(weights)
    with pytest.raises(ValueError, match="do not fit the weights"):
        load_upstream(weights, config={"block_size": 4, "halo_size": 3})


# -- h-transformer-1d ---------------------------------------------------------------------------

H1D = {
    "num_tokens": 20,
    "dim": 16,
    "depth": 2,
    "heads": 2,
    "dim_head": 8,
    "block_size": 8,
    "max_seq_len": 128,
}


@pytest.mark.parametrize("shift_tokens", [False, True])
@pytest.mark.parametrize("reversible", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_h_transformer_1d(
    peer: Callable[[str], ModuleType],
    tmp_path: Path,
    causal: bool,
    reversible: bool,
    shift_tokens: bool,
) -> None:
    """Logits of the package to 1e-5 in all its forms, lengths and masks; corrected by None."""
    forms = {"causal": causal, "reversible": reversible, "shift_tokens": shift_tokens}
    theirs = peer("h_transformer_1d.h_transformer_1d").HTransformer1D(**H1D, **forms).eval()
    torch.save(theirs.state_dict(), tmp_path / "model.pt")
    sizes = {"max_seq_len": 128} if causal else {"max_seq_len": 128, "block_size": 8}
    ours = load_upstream(tmp_path / "model.pt", config=sizes)
    assert ours.settings.compat == "h-transformer-1d-0.1.9"
    for n in (128, 100, 40):
        tokens, mask = torch.randint(0, 20, (2, n)), torch.rand(2, n) < 0.8
        with torch.no_grad():
            assert_close(ours(tokens), theirs(tokens), 1e-5)
            assert_close(ours(tokens, mask), theirs(tokens, mask=mask), 1e-5)
    corrected = load_upstream(
        theirs.state_dict(), "h-transformer-1d", {**sizes, "max_seq_len": 300}, compat=None
    )
    assert {k: v.tolist() for k, v in corrected.state_dict().items()} == {
        k: v.tolist() for k, v in ours.state_dict().items()
    }
    tokens = torch.randint(0, 20, (2, 300))
    first, last = corrected(tokens), tokens.clone()
    last[:, -1] = (last[:, -1] + 1) % 20
    moved = (corrected(last) - first).abs().amax((0, 2)) > 1e-7
    assert bool(moved[:100].all()) == (not causal)
    assert bool(moved[:-1].any()) == (not causal)


def test_h_transformer_1d_generates_as_before(peer: Callable[[str], ModuleType]) -> None:
    """Under compat each token is predicted by the package's mathematics over the whole text."""
    theirs = peer("h_transformer_1d.h_transformer_1d").HTransformer1D(**H1D, causal=True).eval()
    ours = load_upstream(theirs.state_dict(), config={"max_seq_len": 128})
    tokens = torch.randint(0, 20, (1, 9))
    written = ours.generate(tokens, 10, temperature=0)
    for _ in range(10):
        tokens = torch.cat((tokens, theirs(tokens)[:, -1:].argmax(-1)), 1)
    assert torch.equal(written, tokens)


def test_h_transformer_1d_refuses(peer: Callable[[str], ModuleType]) -> None:
    """Keywords that contradict the weights, and lengths that the package cannot compute."""
    theirs = peer("h_transformer_1d.h_transformer_1d").HTransformer1D(**H1D, causal=True)
    weights = theirs.state_dict()
    with pytest.raises(ValueError, match="block_size=16"):
        load_upstream(weights, config={"block_size": 16})
    with pytest.raises(ValueError, match="compat=None takes any length"):
        load_upstream(weights)(torch.zeros(1, 3, dtype=torch.long))
    assert (
        load_upstream(weights, compat=None)(torch.zeros(1, 3, dtype=torch.long)).isfinite().all()
    )
    weights["pos_emb.freqs"] = weights["pos_emb.freqs"] * 2
    with pytest.raises(ValueError, match="frequencies"):
        load_upstream(weights)


# -- SepViT -------------------------------------------------------------------------------------


def test_vit_pytorch_model(tmp_path: Path, peer: Callable[[str], ModuleType]) -> None:
    """A file of vit-pytorch needs no configuration."""
    torch.manual_seed(0)
    theirs = peer("vit_pytorch.sep_vit").SepViT(num_classes=5, dim=16, depth=(1, 2), heads=(1, 2))
    torch.save(theirs.state_dict(), tmp_path / "sep.pt")
    ours = load_upstream(tmp_path / "sep.pt")
    assert isinstance(ours, SepViT)
    x = torch.randn(2, 3, 56, 112)
    assert_close(ours(x), theirs(x), 1e-5)


def test_vit_pytorch_ignores_its_window_size(peer: Callable[[str], ModuleType]) -> None:
    """The package's fault by default, the keyword's meaning with compat=None."""
    options = {"num_classes": 5, "dim": 16, "depth": (1, 1), "heads": (1, 2), "window_size": 14}
    theirs = peer("vit_pytorch.sep_vit").SepViT(**options)
    x = torch.randn(1, 3, 112, 112)
    ours = load_upstream(theirs.state_dict(), "vit-pytorch", config=options)
    assert_close(ours(x), theirs(x), 1e-5)
    fixed = load_upstream(theirs.state_dict(), "vit-pytorch", config=options, compat=None)
    assert fixed.settings.window_size == 14
    assert not torch.allclose(fixed(x), theirs(x), rtol=1e-3)


def test_vit_pytorch_layer(peer: Callable[[str], ModuleType]) -> None:
    """A DSSA layer alone."""
    theirs = peer("vit_pytorch.sep_vit").DSSA(16, heads=2, dim_head=8)
    ours = load_upstream(theirs.state_dict(), "vit-pytorch")
    assert isinstance(ours, DSSA)
    x = torch.randn(1, 16, 14, 7)
    assert_close(ours(x), theirs(x), 1e-5)


def authors_names(model: SepVisionTransformer) -> dict[str, Tensor]:
    """The authors' names for our weights, written down independently of the import."""
    result = {}
    parts = {
        "attn.norm": "norm1",
        "attn.to_qkv": "attn.DSA_qkv",
        "attn.win_norm": "attn.win_tokens_norm",
        "attn.win_qk": "attn.PSA_qk",
        "attn.to_out": "attn.proj",
        "ff.0": "norm2",
        "ff.1": "mlp.fc1",
        "ff.4": "mlp.fc2",
    }
    for name, value in model.state_dict().items():
        words = name.split(".")
        if words[0] != "stages":
            result[name] = value
            continue
        stage, rest = words[1], ".".join(words[2:])
        if rest.startswith("embed.conv."):
            result[f"patch_embeds.{stage}.proj.{words[-1]}"] = value
        elif rest.startswith("norm."):
            result[f"patch_embeds.{stage}.norm.{words[-1]}"] = value
        elif rest.startswith("peg."):
            result[f"pos_block.{stage}.proj.0.{words[-1]}"] = value
        elif rest.endswith("win_tokens"):
            result[f"blocks.{stage}.{words[3]}.win_tokens"] = value
        else:
            part = parts[".".join(words[4:-1])]
            result[f"blocks.{stage}.{words[3]}.{part}.{words[-1]}"] = value
    return result


def test_sepvit_of_the_authors() -> None:
    """Names of the authors' code map onto our parameters, all of them."""
    model = create_model("sepvit_lite", num_classes=11).eval()
    torch.nn.init.normal_(model.stages[0].blocks[0].attn.win_tokens)
    checkpoint = {"model": authors_names(model), "epoch": 3}
    ours = load_upstream(checkpoint, "sepvit")
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(ours(x), model(x))


# -- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("nest", [None, "state_dict", "model", "weights"])
def test_files_of_all_kinds(tmp_path: Path, nest: str | None) -> None:
    """torch.save with or without a nest, prefixes of wrappers, safetensors."""
    weights = halo_weights()
    content = weights if nest is None else {nest: weights, "epoch": 3}
    torch.save(content, tmp_path / "a.pt")
    # DistributedDataParallel round an AutoregressiveWrapper
    wrapped = {f"module.net.{name}": value for name, value in weights.items()}
    torch.save(wrapped, tmp_path / "b.pt")
    save_file(weights, tmp_path / "c.safetensors")
    for name in ("a.pt", "b.pt", "c.safetensors"):
        read = read_checkpoint(tmp_path / name)
        assert read.weights.keys() == weights.keys()
        load_upstream(tmp_path / name, "halonet-pytorch", config=HALO)
    assert read_checkpoint(tmp_path / "a.pt").extra == ({} if nest is None else {"epoch": 3})


class Trap:
    """Unpickling it would create a file."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.target, "w"))


@pytest.mark.parametrize(
    "writer", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x, protocol=2))]
)
def test_dangerous_files_are_refused(tmp_path: Path, writer: Any) -> None:
    """A file with code in it is refused by name, and the code does not run."""
    target = tmp_path / "sprung"
    writer({"weights": Trap(str(target))}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt.*refused"):
        load_upstream(tmp_path / "evil.pt", "halonet-pytorch", config=HALO)
    assert not target.exists()


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_truncated_files_are_named(tmp_path: Path, name: str, share: float) -> None:
    """A file cut short is named, whatever is left of it."""
    path = tmp_path / name
    if name.endswith(".pt"):
        torch.save(halo_weights(), path)
    else:
        save_file(halo_weights(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        read_checkpoint(path)


def test_other_failures_are_named(tmp_path: Path) -> None:
    """Missing files, foreign contents, unknown packages and versions."""
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        read_checkpoint(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.pt"):
        read_checkpoint(tmp_path / "text.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list"):
        read_checkpoint(tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds no weights; its keys are epoch"):
        read_checkpoint({"epoch": 3})
    with pytest.raises(ValueError, match="did you mean 'halonet-pytorch'"):
        load_upstream(halo_weights(), "halonet_pytorch")
    with pytest.raises(ValueError, match=r"halonet-pytorch-0\.0\.5"):
        load_upstream(halo_weights(), config=HALO, compat="halonet-pytorch-9")
    with pytest.raises(ValueError, match="cannot tell which package"):
        load_upstream({"a": torch.zeros(1)})
    with pytest.raises(ValueError, match="does not look like vit-pytorch"):
        load_upstream({"layers.0.2.layers.0.0.window_tokens": torch.zeros(3)}, "vit-pytorch")
    broken = {**halo_weights(), "extra.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"extra\.weight"):
        load_upstream(broken, config=HALO)


def test_packages_are_listed() -> None:
    """Each package names the versions whose mathematics can be had."""
    packages = list_upstreams()
    assert packages["halonet-pytorch"] == ("halonet-pytorch-0.0.5", "halonet-pytorch-0.0.4")
    assert {"timm", "vit-pytorch", "sepvit"} <= packages.keys()
