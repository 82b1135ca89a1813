"""The task of DALL-E: bits per image token, given the caption."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn

from foveal.common.meta import on_meta
from foveal.data.captions import CaptionedPictures, CaptionedSet, DalleDataConfig
from foveal.data.sampling import spread
from foveal.draw.sheet import draw_sheet
from foveal.models import load_model
from foveal.models.dalle import DALLE
from foveal.recipes.assets import read_asset
from foveal.recipes.captions.draw import draw_captions, load_clip
from foveal.recipes.captions.stages import check_stage, prepare_stage
from foveal.recipes.clip.kind import (
    CANDIDATES,
    Captions,
    caption_tokens,
    fit,
    retrieve,
    score_clip,
    shares,
)
from foveal.recipes.kind import KindTask, Run, seeded_model
from foveal.recipes.settings import RunConfig
from foveal.recipes.vae.kind import check_size, encode_each, score_vae
from foveal.training.config import check_batch
from foveal.training.dealing import sharing, totals_in_shares
from foveal.training.machine import pick_device
from foveal.training.task import Totals

_QUICK_PICTURES = 100
_SHOWN = 16
_BATCH = 50


class Dalle(Captions):
    """DALL-E, on tokens of pictures that are made once."""

    data = DalleDataConfig
    unit = "tokens"
    score = "bits_per_image_token"
    shares = True

    def open(self, data: DalleDataConfig) -> tuple[CaptionedSet, CaptionedSet]:
        """Captioned pictures; ValueError for a setting that would change them in every pass."""
        if data.transform:
            raise ValueError(
                f"data.transform must be left out of the task 'captions', got {data.transform!r}: "
                "its pictures become tokens once; set it in the recipe of the VAE."
            )
        return super().open(data)

    def build(self, config: RunConfig, **assets: Any) -> DALLE:
        """The model of a configuration.

        Raises:
            ValueError: no DALLE, or sizes that are not those of the VAE and the data.
        """
        check_size(assets["vae"], config.data.size)
        words = {
            "num_text_tokens": ("the tokenizer's vocabulary", assets["tokenizer"].vocab_size),
            "text_seq_len": ("data.text_length", config.data.text_length),
        }
        sizes = {name: value for name, (_, value) in words.items()}
        model = seeded_model(config, vae=assets["vae"], **sizes)
        if not isinstance(model, DALLE):
            raise ValueError(f"the task 'captions' needs a DALLE, got {config.model['name']!r}.")
        for name, (whose, value) in words.items():
            found = getattr(model.settings, name)
            if found != value:
                raise ValueError(
                    f"{name} of the model must be {whose}, {value}, got {name}={found}; leave it "
                    "out."
                )
        return model

    def read_assets(self, folder: Path) -> dict[str, Any]:
        """Also the VAE, which has its weights."""
        return {"vae": load_model(folder / "vae"), **super().read_assets(folder)}

    def check_stages(self, task: KindTask) -> None:
        """Find what does not fit before anything is trained; raises ValueError."""
        config, count = task.config, len(task.train)
        check_batch(config.training, count)
        for place in (on_meta, contextlib.nullcontext):  # one costs nothing, the other is right
            try:
                with place():
                    vae: Any = check_stage(config, "vae", count)
                    self.build(config, **task.assets, vae=vae)
                    if config.data.clip:
                        check_stage(config, "clip", count)
                return
            except ValueError:
                if place is not on_meta:
                    raise

    def prepare(self, task: KindTask, folder: Path, train: Callable[..., Any]) -> dict[str, Any]:
        """The VAE, tokens of all training pictures, and tokens (captions, pictures) to score.

        VAE and CLIP are found, or trained first, and kept in the folder of the run.
        """
        data = task.config.data
        vae: Any = prepare_stage(task.config, folder, "vae", train)
        if data.clip:
            prepare_stage(task.config, folder, "clip", train)
        check_size(vae, data.size)
        texts = task.held_out.first_captions()
        if data.shuffle_captions:
            texts = texts[len(texts) // 2 :] + texts[: len(texts) // 2]
        captions = caption_tokens(task.assets["tokenizer"], texts, data.text_length)
        vae.to(pick_device(task.config.training.device))
        with sharing(PartialState()):  # each reads and encodes its share, and all get all tokens
            tokens, held_out = (
                encode_each(vae, len(part), part.images) for part in (task.train, task.held_out)
            )
        return {"vae": vae, "tokens": tokens, "scored": (captions, held_out)}

    def source(self, task: KindTask) -> CaptionedPictures:
        """Tokens of pictures, each with one of their captions."""
        shuffle = task.config.data.shuffle_captions
        return CaptionedPictures(task.train, self.words(task), task.assets["tokens"], shuffle)

    def units(self, task: KindTask) -> int:
        model: Any = task.model
        return int(model.max_seq_len)

    def loss(self, task: KindTask, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The model's loss of text and image tokens, in nats.

        Of a process that shares its rows with others, that of its part as often as there are
        parts, as in `NextToken.loss`.
        """
        share = task.config.data.null_share
        loss: Tensor = model(*batch, return_loss=True, null_cond_prob=share)
        return loss if task.parts is None else loss * task.parts.size

    def evaluate(self, task: KindTask, *, quick: bool, rank: int, world_size: int) -> Totals:
        """Bits per image token of 2,000 held-out pictures given their captions, or of 100."""
        captions, tokens = task.assets["scored"]
        limit = _QUICK_PICTURES if quick else self.most(task.config.data)
        index = spread(len(tokens), limit)[rank::world_size]
        totals = image_bits(task.model, captions[index], tokens[index])
        shared = 1 if task.parts is None else task.parts.size  # each has a part of the bits
        return {name: (bits, count / shared) for name, (bits, count) in totals.items()}

    def facts(self, task: KindTask) -> dict[str, str]:
        model: Any = task.model
        (rows, columns), kinds, data = model.grid, model.num_image_tokens, task.config.data
        words = f"{data.text_length} tokens, of {task.assets['tokenizer'].vocab_size:,} kinds"
        told = {
            "caption": words + ("; of other pictures" if data.shuffle_captions else ""),
            "picture": f"{rows} x {columns} tokens, of {kinds:,} kinds ({math.log2(kinds):.1f} "
            "bits each if all were as likely)",
        }
        return super().facts(task) | told

    def finish(self, task: KindTask, folder: Path) -> None:
        captions = task.held_out.first_captions(spread(len(task.held_out), _SHOWN))
        model: Any = task.model.eval()
        images = draw_captions(model, task.assets["tokenizer"], captions, seed=0)
        draw_sheet(images, folder / "pictures" / "drawn.png", captions=captions, columns=4)

    def scores(self, run: Run, model: Any, found: CaptionedSet) -> dict[str, float]:
        """Bits per token, what the VAE can do at best, and what CLIP says of drawn pictures."""
        tokenizer, captions = read_asset("tokenizer", run.folder), found.first_captions()
        texts = caption_tokens(tokenizer, captions, run.config.data.text_length)
        tokens = encode_each(model.vae, len(found), found.images)
        bits, count = totals_in_shares(
            lambda rank, size: image_bits(model, texts[rank::size], tokens[rank::size])[self.score]
        )
        scores = {"bits_per_image_token": bits / count, **score_vae(model.vae, found)}
        if not run.config.data.clip:
            return scores
        clip, words = load_clip(run.folder)
        clip.to(next(model.parameters()).device)
        scores |= score_clip(clip, words, found.images(), captions)
        chosen = found.first_captions(spread(len(found), CANDIDATES))
        drawn = fit(draw_captions(model, tokenizer, chosen, seed=0), clip)
        places = retrieve(clip, words, drawn, chosen)
        return scores | {f"drawn_{name}": value for name, value in shares(places).items()}


KIND = Dalle()


@torch.no_grad()
def image_bits(model: Any, captions: Tensor, tokens: Tensor) -> Totals:
    """Sum of bits and number of image tokens, given captions (n, words), tokens (n, grid)."""
    device = model.to_logits.weight.device
    bits = 0.0
    for text, image in zip(captions.split(_BATCH), tokens.split(_BATCH), strict=True):
        _, nats = model.losses(text.to(device), image.to(device))
        bits += float(nats) * image.numel() / math.log(2)
    return {"bits_per_image_token": (bits, float(tokens.numel()))}
