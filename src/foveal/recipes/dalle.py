"""The task of DALL-E: bits per image token, given the caption."""

from __future__ import annotations

import contextlib
import importlib
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveal.common.meta import on_meta
from foveal.data.caption_sources import open_captions
from foveal.data.captions import CaptionedPictures, CaptionedSet
from foveal.data.sampling import spread
from foveal.data.stream import Stream
from foveal.data.tokens import CaptionTokenizer
from foveal.models import load_model
from foveal.models.dalle import DALLE
from foveal.models.vae import ImageTokenizer
from foveal.recipes.assets import TOKENIZER, tokenizer_of
from foveal.recipes.build import build_model
from foveal.recipes.clip import caption_tokens
from foveal.recipes.config import RunConfig
from foveal.recipes.stages import check_stage, prepare_stage
from foveal.recipes.vae import MOST_PICTURES, check_size, describe_sets, encode_all
from foveal.training.config import check_batch
from foveal.training.machine import pick_device
from foveal.training.task import Totals

_QUICK_PICTURES = 100
_BATCH = 50


def build_dalle(config: RunConfig, vae: ImageTokenizer, tokenizer: CaptionTokenizer) -> DALLE:
    """The model of a configuration, its weights drawn from the run's seed.

    Raises:
        ValueError: a model that is no DALLE, or sizes that are not those of the VAE and the data.
    """
    importlib.import_module("foveal.models")
    check_size(vae, config.data.size)
    torch.manual_seed(config.training.seed)
    model = build_model(
        config.model,
        f"recipe {config.recipe}",
        vae=vae,
        num_text_tokens=tokenizer.vocab_size,
        text_seq_len=config.data.text_length,
    )
    if not isinstance(model, DALLE):
        raise ValueError(f"the task 'captions' needs a DALLE, got {config.model['name']!r}.")
    wanted = {"text_seq_len": ("data.text_length", config.data.text_length)}
    wanted["num_text_tokens"] = ("the tokenizer's vocabulary", tokenizer.vocab_size)
    for name, (whose, value) in wanted.items():
        found = getattr(model.settings, name)
        if found != value:
            raise ValueError(
                f"{name} of the model must be {whose}, {value}, got {name}={found}; leave it out."
            )
    return model


def rebuild(config: RunConfig, folder: Path) -> nn.Module:
    """The model of a run, with fresh weights but for its VAE."""
    vae = load_model(folder / "vae")
    return build_dalle(config, vae, tokenizer_of(folder))  # type: ignore[arg-type]


class DalleTask:
    """Trains a DALLE on tokens that are made once. See `foveal.training.task.Task`."""

    unit = "tokens"
    score = "bits_per_image_token"

    def __init__(self, config: RunConfig, rank: int = 0, world_size: int = 1) -> None:
        self.run, self.config, self._place = config, config.data, (rank, world_size)
        self.train_set, self.valid_set = open_captions(config.data)
        self.tokenizer = CaptionTokenizer.train(
            self.train_set.all_captions, config.data.vocabulary
        )

    def prepare(self, folder: Path) -> None:
        """Find or train the VAE and CLIP, which are kept in the folder of the run."""
        config, data, training = self.run, self.config, self.run.training
        self.vae = prepare_stage(config, folder, "vae")
        if data.clip:
            prepare_stage(config, folder, "clip")
        self.model = build_dalle(config, self.vae, self.tokenizer)  # type: ignore[arg-type]
        captions = caption_tokens(self.tokenizer, self.train_set.all_captions, data.text_length)
        tokens = self._encode(self.train_set)
        source = CaptionedPictures(self.train_set, captions, tokens, data.shuffle_captions)
        self.stream = Stream(source, training.batch_size, training.seed, *self._place)
        self.valid = self._held_out()
        self.units_per_batch = training.batch_size * self.model.max_seq_len

    def check(self) -> None:
        """Find what does not fit before anything is trained; raises ValueError."""
        count = len(self.train_set)
        check_batch(self.run.training, count)
        for place in (on_meta, contextlib.nullcontext):  # one costs nothing, the other is right
            try:
                with place():
                    vae = check_stage(self.run, "vae", count)
                    build_dalle(self.run, vae, self.tokenizer)  # type: ignore[arg-type]
                    if self.config.clip:
                        check_stage(self.run, "clip", count)
                return
            except ValueError:
                if place is not on_meta:
                    raise

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The model's loss of text and image tokens, in nats."""
        loss: Tensor = model(*batch, return_loss=True, null_cond_prob=self.config.null_share)
        return loss

    def evaluate(self, *, quick: bool, rank: int = 0, world_size: int = 1) -> Totals:
        """Bits per image token of 2,000 held-out pictures given their captions, or of 100."""
        captions, tokens = self.valid
        index = spread(len(tokens), _QUICK_PICTURES if quick else MOST_PICTURES)[rank::world_size]
        return image_bits(self.model, captions[index], tokens[index])

    def facts(self) -> dict[str, str]:
        """What a report should say about the data and the model."""
        rows, columns = self.model.grid
        kinds = self.model.num_image_tokens
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        return {
            "parameters": f"{trained:,}",
            **describe_sets(self.train_set, self.valid_set),
            "caption": f"{self.config.text_length} tokens, of {self.tokenizer.vocab_size:,} kinds"
            + ("; of other pictures" if self.config.shuffle_captions else ""),
            "picture": f"{rows} x {columns} tokens, of {kinds:,} kinds ({math.log2(kinds):.1f} "
            "bits each if all were as likely)",
        }

    def save_assets(self, folder: Path) -> None:
        """Write what the run needs to draw pictures besides its weights."""
        self.tokenizer.save(folder / TOKENIZER)

    def _encode(self, pictures: CaptionedSet) -> Tensor:
        assert isinstance(self.vae, ImageTokenizer)
        return encode_all(self.vae.to(pick_device(self.run.training.device)), pictures.images())

    def _held_out(self) -> tuple[Tensor, Tensor]:
        """Captions (n, text_length) and image tokens (n, grid tokens) to score."""
        texts = self.valid_set.first_captions()
        if self.config.shuffle_captions:
            texts = texts[len(texts) // 2 :] + texts[: len(texts) // 2]
        captions = caption_tokens(self.tokenizer, texts, self.config.text_length)
        return captions, self._encode(self.valid_set)


@torch.no_grad()
def image_bits(model: Any, captions: Tensor, tokens: Tensor) -> Totals:
    """Sum of bits and number of image tokens, given captions (n, words), tokens (n, grid)."""
    device = model.to_logits.weight.device
    bits = 0.0
    for text, image in zip(captions.split(_BATCH), tokens.split(_BATCH), strict=True):
        _, nats = model.losses(text.to(device), image.to(device))
        bits += float(nats) * image.numel() / math.log(2)
    return {"bits_per_image_token": (bits, float(tokens.numel()))}
