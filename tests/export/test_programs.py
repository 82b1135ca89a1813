"""Programs: every family at sizes that were not traced, without foveal, near-linear, refused."""

from __future__ import annotations

import copy
import errno
import io
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lively import lively

import foveal
from foveal import export
from foveal import patterns as P
from foveal.export.check import gaps
from foveal.export.files import _Told
from foveal.export.program import _copied

TOKENS: dict[str, Any] = {"num_tokens": 16, "dim": 32, "heads": 2, "dim_head": 16}
LONG = 16_384


def window() -> Any:
    patterns = (P.SlidingWindow(9), P.Full(causal=True))
    return foveal.TransformerLM(**TOKENS, depth=2, max_seq_len=600, pattern=patterns)


def mixed() -> Any:
    patterns = (
        P.Blocks(8, causal=True, lookback=1),
        P.SlidingWindow(9) | P.Prefix(3),
        P.Strided(70),
    )
    options: dict[str, Any] = {"kv_heads": 1, "softcap": 5.0, "sinks": True, "positions": "alibi"}
    return foveal.TransformerLM(**TOKENS, depth=3, max_seq_len=600, pattern=patterns, **options)


def causal_levels() -> Any:
    return foveal.HTransformer1D(**TOKENS, depth=1, max_seq_len=100, causal=True, block_size=16)


def levels() -> Any:
    options: dict[str, Any] = {"shift_tokens": True, "relative_bias": True}
    return foveal.HTransformer1D(**TOKENS, depth=1, max_seq_len=100, block_size=16, **options)


def pair() -> Any:
    sizes = {"enc_depth": 1, "dec_depth": 1, "enc_block_size": 8, "dec_block_size": 8}
    return foveal.HTransformerSeq2Seq(**TOKENS, **sizes, max_seq_len=300)


def classifier() -> Any:
    return foveal.HTransformerClassifier(**TOKENS, depth=1, max_seq_len=300, block_size=8)


def hourglass() -> Any:
    sizes: dict[str, Any] = {"depth": (1, 1, 1), "max_seq_len": 96, "shorten_factor": 2}
    return foveal.HourglassTransformerLM(**TOKENS, **sizes)


def dalle() -> Any:
    kinds = ("axial_col", "conv_like")
    sizes = {"dim": 32, "depth": 2, "heads": 2, "dim_head": 16, "text_seq_len": 6}
    tokens = {"num_text_tokens": 50, "num_image_tokens": 20, "image_grid": 9}
    return foveal.DALLE(**sizes, **tokens, attn_types=kinds, shift_tokens=True)


def halonet() -> Any:
    sizes = {"depths": (1,), "dims": (16,), "heads": (2,), "stem_dim": 16}
    return foveal.HaloNet(**sizes, strides=(2,), final_dim=48, num_classes=5)


def sepvit() -> Any:
    sizes = {"depths": (1,), "dims": (8,), "heads": (1,), "window_sizes": ((7,),)}
    return foveal.create_model("sepvit_lite", **sizes, strides=(4,), num_classes=5)


def compact() -> Any:
    return foveal.SepViT(dim=8, depth=(1, 1), heads=(1, 2), dim_head=8, num_classes=5)


def relative() -> Any:
    options: dict[str, Any] = {"positions": "relative", "updown_sample_type": "linear"}
    sizes: dict[str, Any] = {"depth": (1, (1, 1, 1), 1), "max_seq_len": 96, "shorten_factor": 3}
    return foveal.HourglassTransformerLM(**TOKENS, **sizes, **options)


def clip() -> Any:
    words = {"dim_text": 16, "text_enc_depth": 1, "text_heads": 2, "text_seq_len": 9}
    pixels = {"dim_image": 16, "visual_enc_depth": 1, "visual_heads": 2, "visual_image_size": 16}
    return foveal.CLIP(**words, **pixels, dim_latent=8, num_text_tokens=20, visual_patch_size=8)


def vqvae() -> Any:
    sizes = {"image_size": 16, "num_tokens": 12, "codebook_dim": 8, "hidden_dim": 8}
    return foveal.VQVAE(**sizes, num_layers=2)


OFTEN = (causal_levels, hourglass, dalle, halonet, sepvit)
SELDOM = (window, mixed, levels, pair, classifier, relative, compact, clip, vqvae)
FAMILIES = {one.__name__: one for one in (*OFTEN, *SELDOM)}
PLAYED = FAMILIES if os.environ.get("FOVEAL_LONG") else [one.__name__ for one in OFTEN]
"""Those whose programs are made always, as windows are below; the others with FOVEAL_LONG=1."""


def made(kind: str) -> Any:
    torch.manual_seed(0)
    model = FAMILIES[kind]().eval()
    return lively(model) if kind in ("halonet", "sepvit", "compact") else model


@pytest.mark.parametrize("kind", PLAYED)
def test_programs_equal_their_models(kind: str) -> None:
    """At the smallest, the largest and other sizes than the traced ones, to 1e-4."""
    model = made(kind)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    program = export.program(model)
    assert export.check(program, model) < 1e-4
    sizes = export.describe(program, model)["inputs"]
    assert all(isinstance(one["shape"][0], list) for one in sizes)  # the batch varies
    assert not any("foveal" in str(node.target) for node in program.graph.nodes)
    assert all(p.requires_grad for p in model.parameters())
    for name, x in model.state_dict().items():
        assert torch.equal(x, before[name])


RUN = """
import contextlib, json, sys, torch
from pathlib import Path

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(x for x in lines if x.startswith("VmHWM")).split()[1]) * 1024

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "foveal":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
extra = {"foveal.json": ""}
program = torch.export.load(f"{FOLDER}/model.pt2", extra_files=extra)
about, told = json.loads(extra["foveal.json"]), {}
run = program.module()
for kind, given in torch.load(f"{FOLDER}/given.pt").items():
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    out = run(given["tokens"], mask=given["mask"])
    added = peak() - before
    worst = (out - given["out"]).abs().max().item()
    told[kind] = [about["family"], worst, added, out.requires_grad]
assert not any(name.split(".")[0] == "foveal" for name in sys.modules)
print(json.dumps(told))
"""


def test_files_run_where_foveal_is_not(tmp_path: Path, after_dynamo: Any) -> None:
    """A process that cannot import foveal gets the model's numbers; a window at 16,384 tokens
    takes less than a quarter of the memory of all pairs; files tell what they are."""
    torch.manual_seed(0)
    own = {"num_tokens": 16, "dim": 128, "depth": 1, "heads": 4, "dim_head": 32, "ff_mult": 1}
    model = foveal.TransformerLM(**own, max_seq_len=LONG, pattern=P.SlidingWindow(128)).eval()
    assert export.save(model, tmp_path / "model.pt2", mask=True)["deviation"] < 1e-4
    assert [one.name for one in tmp_path.iterdir()] == ["model.pt2"]
    given = {}
    for kind, shape, real in (("masked", (2, 301), 0.7), ("long", (1, LONG), 1.0)):
        tokens, mask = torch.randint(16, shape), torch.rand(shape) < real
        with torch.no_grad():
            given[kind] = {"tokens": tokens, "mask": mask, "out": model(tokens, mask=mask)}
    torch.save(given, tmp_path / "given.pt")
    told = json.loads(after_dynamo(RUN.replace("FOLDER", repr(str(tmp_path)))))
    for family, worst, _, graded in told.values():
        assert (family, worst < 1e-4, graded) == ("transformer", True, False)
    assert told["long"][2] < LONG * LONG * 4 / 4

    program, about = export.load(tmp_path / "model.pt2")
    sizes, names = [[1, None], [1, LONG]], ["batch", "length"]
    assert about["inputs"] == [
        {"name": "tokens", "dtype": "int64", "shape": sizes, "sizes": names, "tokens": 16},
        {"name": "mask", "dtype": "bool", "shape": sizes, "sizes": names, "tokens": None},
    ]
    assert about["config"]["max_seq_len"] == LONG
    assert about["causal"] is True
    with pytest.raises(ValueError, match=r"differs .* where 0e\+00 is allowed"):
        export.check(program, model, tolerance=0.0)
    with torch.no_grad():
        model.to_logits.bias[3] += 1.0
    with pytest.raises(ValueError, match=r"differs from the model by .* at \(1, "):
        export.check(program, model)
    whole = (tmp_path / "model.pt2").read_bytes()
    half = len(whole) // 2
    broken = (
        whole[:half] + bytes(255 - one for one in whole[half : half + 64]) + whole[half + 64 :]
    )
    logged: list[Any] = []
    handler = logging.Handler()
    handler.emit = logged.append  # type: ignore[method-assign]
    logging.getLogger("torch.export").addHandler(handler)
    for content in (b"PK nothing", b"", whole[:half], whole[:-40], broken):
        (tmp_path / "model.pt2").write_bytes(content)
        with pytest.raises(ValueError, match="is damaged or no program of foveal") as told:
            export.load(tmp_path / "model.pt2")
        assert "warnings above" not in str(told.value)
    logging.getLogger("torch.export").removeHandler(handler)
    assert not logged  # with traces


def test_sizes_may_be_fixed_or_bounded() -> None:
    """A batch of one, lengths from 5 to 40; the model's precision and training mode stay."""
    model = made("window").to(torch.bfloat16).train()
    program = export.program(model, batch=1, length=(5, 40))
    assert model.training
    assert export.describe(program, model)["inputs"][0]["shape"] == [1, [5, 40]]
    assert export.check(program, model) < 5e-2
    with pytest.raises(Exception, match="40"):
        program.module()(torch.zeros(1, 41, dtype=torch.long))
    for tolerance in (-1e-9, float("nan"), True, "1e-4"):
        with pytest.raises(ValueError, match=r"tolerance must be a number at least 0"):
            export.check(program, model, tolerance=tolerance)
    with pytest.raises(ValueError, match=r"differs from the model by .* where 0e"):
        export.check(program, other_weights(model), tolerance=0)
    with pytest.raises(TypeError, match="program must be an ExportedProgram, got str"):
        export.check("model.pt2", model)


OWN_LENGTHS = {
    P.Documents((5, 9)) & P.Full(causal=True): (14, 40),
    P.Packed(P.SlidingWindow(3), (9, 8)): 17,
    P.BlockDiffusion(4, 12): 24,
    P.NextScale((1, 2, 3, 4)): (1, 30),
    P.BlockSparse(torch.eye(4) > 0, 8) | P.SlidingWindow(3): (1, 32),
    P.SlidingWindow(3): (1, 40),
}


def test_lengths_are_those_that_the_patterns_take() -> None:
    """Of patterns that know their length, or the least or the most of it, nothing is traced that
    the model refuses."""
    for pattern, wanted in OWN_LENGTHS.items():
        model = foveal.TransformerLM(**TOKENS, depth=1, max_seq_len=40, pattern=pattern)
        (tokens,) = export.inputs_of(model)
        least, most = (wanted, wanted) if isinstance(wanted, int) else wanted
        assert tokens.sizes[1] == ("length", (least, most))
        with torch.no_grad():
            model(torch.zeros(1, least, dtype=torch.long))
            model(torch.zeros(1, most, dtype=torch.long))


class Full(io.BytesIO):
    """A disk that is full after some bytes."""

    def write(self, data: Any) -> int:
        if self.tell() > 2000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_a_full_disk_is_told_once_torch_has_let_go() -> None:
    """Its archives end the whole process where a write raises."""
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(3, 2),))
    with pytest.raises(OSError, match="No space left"), _Told(Full()) as told:
        torch.export.save(program, told)
    whole = io.BytesIO()
    with _Told(whole) as told:
        torch.export.save(program, told)
    whole.seek(0)
    run = torch.export.load(whole).module()
    assert run(torch.ones(3, 2)).shape == (3, 2)


def other_weights(model: Any) -> Any:
    found = copy.deepcopy(model)
    with torch.no_grad():
        found.to_logits.weight.mul_(1.01)
    return found


def test_a_model_elsewhere_is_copied_to_the_cpu() -> None:
    """Every number and tie of it, and nothing that is shared."""
    model = foveal.TransformerLM(**TOKENS, depth=1, tie_embeddings=True, positions="t5")
    model.token_emb.weight.requires_grad_(False)
    found = _copied(model)
    theirs, ours = model.state_dict(), found.state_dict()
    assert list(theirs) == list(ours)
    for name, x in theirs.items():
        assert torch.equal(x, ours[name])
        assert x.data_ptr() != ours[name].data_ptr()
    assert [p.requires_grad for p in found.parameters()] == [
        p.requires_grad for p in model.parameters()
    ]
    assert len(list(found.parameters())) == len(list(model.parameters()))
    tokens = torch.randint(16, (2, 9))
    with torch.no_grad():
        assert torch.equal(model.eval()(tokens), found.eval()(tokens))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="a model on CUDA")
def test_programs_of_a_gpu_run_on_the_cpu(tmp_path: Path) -> None:
    """What stands on an accelerator is exported as it is, and stays there."""
    model = made("window").cuda()
    assert export.save(model, tmp_path / "a.pt2", length=(1, 90))["deviation"] < 1e-4
    assert model.device.type == "cuda"
    run = torch.export.load(tmp_path / "a.pt2").module()
    assert run(torch.zeros(1, 7, dtype=torch.long)).device.type == "cpu"


def test_deviations_count_what_is_no_number() -> None:
    """The same infinity and NaN are the same, anything else beside them is infinitely far."""
    inf, nan = torch.inf, torch.nan
    found = torch.tensor([1.0, inf, -inf, nan, nan, 2.0, 2.0, inf])
    wanted = torch.tensor([1.5, inf, -inf, nan, 2.0, nan, inf, -inf])
    assert gaps(found, wanted).tolist() == [0.5, 0, 0, 0, inf, inf, inf, inf]


def test_sizes_of_one_and_two() -> None:
    """torch's smallest range that is one: of both sizes at once."""
    model = foveal.TransformerLM(**TOKENS, depth=1, max_seq_len=2).eval()
    program = export.program(model, batch=(1, 2))
    assert export.describe(program, model)["inputs"][0]["shape"] == [[1, 2], [1, 2]]
    assert export.check(program, model) < 1e-4
    for shape in ((1, 1), (1, 2), (2, 1), (2, 2)):
        tokens = torch.randint(16, shape)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(tokens), model(tokens))


def test_mistakes_are_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trace may take minutes: what is known to be wrong is said before."""
    monkeypatch.setattr("foveal.export.files.trace", pytest.fail)
    model = made("window")
    for tolerance in (-1, "small", float("nan")):
        with pytest.raises(ValueError, match="tolerance must be a number at least 0"):
            export.save(model, tmp_path / "a.pt2", tolerance=tolerance)  # type: ignore[arg-type]
    program: Any = object()
    with pytest.raises(TypeError, match="must be an ExportedProgram, got object"):
        export.save(model, tmp_path / "a.pt2", program=program)
    if Path("/proc/self").is_dir():
        with pytest.raises(OSError, match=r"nothing can be written there.*/proc/self/a\.pt2"):
            export.save(model, "/proc/self/a.pt2")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_said(tmp_path: Path) -> None:
    """One line: what draws at random, what is no model, and options that mean nothing."""
    sizes = {"image_size": 16, "num_tokens": 12, "codebook_dim": 8, "hidden_dim": 8}
    with pytest.raises(ValueError, match="DiscreteVAE has no program: it draws at random"):
        export.program(foveal.DiscreteVAE(**sizes, num_layers=2))
    with pytest.raises(TypeError, match="must be a model of foveal, got Linear"):
        export.program(torch.nn.Linear(2, 2))
    model = made("window")
    with pytest.raises(ValueError, match=r"length must be at most 600.* got length=601"):
        export.program(model, length=601)
    with pytest.raises(ValueError, match="sees no pictures, got size=32"):
        export.program(model, size=32)
    with pytest.raises(ValueError, match="reads no tokens, got length=8"):
        export.program(made("halonet"), length=8)
    with pytest.raises(ValueError, match="takes no mask of text"):
        export.program(made("dalle"), mask=True)
    with pytest.raises(ValueError, match=r"batch\[1\] must be an int of at least 4"):
        export.program(model, batch=(4, 2))
    with pytest.raises(ValueError, match=r"length must be at most 6, .* text of DALLE, got"):
        export.program(made("dalle"), length=(20, None))
    with pytest.raises(ValueError, match="a model on meta has no weights"):
        export.program(made("window").to("meta"))
    with pytest.raises(ValueError, match="program has its sizes already, got batch as well"):
        export.save(model, tmp_path / "a.pt2", program=object(), batch=1)
    with pytest.raises(ValueError, match="format must be torch"):
        export.save(model, tmp_path / "a.pt2", "onxx")
    with pytest.raises(FileNotFoundError, match="does not exist; make it"):
        export.save(model, tmp_path / "none" / "a.pt2")
    with pytest.raises(IsADirectoryError, match="is a folder; name a file"):
        export.save(model, tmp_path)
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(3, 2),))
    with pytest.raises(ValueError, match="already, got batch, length as well"):
        export.save(model, tmp_path / "a.pt2", program=program, batch=1, length=3)
    assert not list(tmp_path.iterdir())
