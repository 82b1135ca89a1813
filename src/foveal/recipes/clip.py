"""The task of CLIP: which caption goes with which picture."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from foveal.data.caption_sources import open_captions
from foveal.data.captions import CaptionedPictures
from foveal.data.sampling import spread
from foveal.data.stream import Stream
from foveal.data.tokens import CaptionTokenizer
from foveal.models.clip import CLIP
from foveal.recipes.assets import TOKENIZER, tokenizer_of
from foveal.recipes.build import build_model
from foveal.recipes.config import RunConfig
from foveal.recipes.vae import MOST_PICTURES, describe_sets
from foveal.training.task import Totals

CANDIDATES = 100
"""Captions among which the right one has to be found."""


def caption_tokens(
    tokenizer: CaptionTokenizer, captions: Sequence[str], text_length: int
) -> Tensor:
    """Tokens (captions, text_length); what is longer is cut."""
    return tokenizer.tokenize(captions, text_length, truncate_text=True)


def build_clip(config: RunConfig, tokenizer: CaptionTokenizer) -> CLIP:
    """The model of a configuration, its weights drawn from the run's seed.

    Raises:
        ValueError: a model that is no CLIP.
    """
    importlib.import_module("foveal.models")
    torch.manual_seed(config.training.seed)
    model = build_model(
        config.model,
        f"recipe {config.recipe}",
        num_text_tokens=tokenizer.vocab_size,
        text_seq_len=config.data.text_length,
        visual_image_size=config.data.size,
    )
    if not isinstance(model, CLIP):
        raise ValueError(f"the task 'clip' needs a CLIP, got {config.model['name']!r}.")
    return model


def rebuild(config: RunConfig, folder: Path) -> nn.Module:
    """The model of a run, with fresh weights."""
    return build_clip(config, tokenizer_of(folder))


class ClipTask:
    """Trains a CLIP. See `foveal.training.task.Task`."""

    unit = "pairs"
    score = "top10"

    def __init__(self, config: RunConfig, rank: int = 0, world_size: int = 1) -> None:
        data, training = config.data, config.training
        self.train_set, self.valid_set = open_captions(data)
        self.tokenizer = CaptionTokenizer.train(self.train_set.all_captions, data.vocabulary)
        captions = caption_tokens(self.tokenizer, self.train_set.all_captions, data.text_length)
        source = CaptionedPictures(self.train_set, captions)
        self.stream = Stream(source, training.batch_size, training.seed, rank, world_size)
        self.units_per_batch = training.batch_size
        self.model = build_clip(config, self.tokenizer)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Contrastive loss in nats within the batch of this process."""
        loss: Tensor = model(*batch, return_loss=True)
        return loss

    def evaluate(self, *, quick: bool, rank: int = 0, world_size: int = 1) -> Totals:
        """How often the right caption is first, or in the first ten, of 100 held-out ones."""
        index = spread(len(self.valid_set), MOST_PICTURES)
        captions, images = self.valid_set.first_captions(index), self.valid_set.images(index)
        places = retrieve(self.model, self.tokenizer, images, captions)
        return retrieval_totals(places[rank::world_size])

    def save_assets(self, folder: Path) -> None:
        """Write what the run needs besides its weights."""
        self.tokenizer.save(folder / TOKENIZER)

    def facts(self) -> dict[str, str]:
        """What a report should say about the data and the model."""
        return {
            "parameters": f"{self.model.num_parameters:,}",
            **describe_sets(self.train_set, self.valid_set),
            "retrieval": f"of one caption among {min(CANDIDATES, len(self.valid_set))}",
        }


@torch.no_grad()
def retrieve(
    clip: CLIP, tokenizer: CaptionTokenizer, images: Tensor, captions: Sequence[str]
) -> Tensor:
    """The place (n,) from 0 that CLIP gives the caption of each picture among 100 captions.

    The pictures, in an order that is drawn once and for all, are cut into groups of 100 (what is
    left over joins none, unless there are fewer); the candidates are the captions of the group.

    Args:
        images: (n, channels, height, width), float from 0 to 1.
        captions: of the pictures.
    """
    device = next(clip.parameters()).device
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    tokens = caption_tokens(tokenizer, captions, clip.settings.text_seq_len)
    places = []
    for group in order.split(CANDIDATES):
        if len(group) < min(CANDIDATES, len(images)):
            continue
        words = clip.encode_text(tokens[group].to(device))
        pictures = clip.encode_image(images[group].to(device))
        similarity = (pictures @ words.T).float().cpu()
        own = similarity.diagonal()[:, None]
        # of equal ones half are counted, so that a model that says nothing is right by chance
        places.append((similarity > own).sum(1) + ((similarity == own).sum(1) - 1) / 2)
    return torch.cat(places)


def retrieval_totals(places: Tensor) -> Totals:
    """Sums and counts of places that are the first, or among the first ten."""
    count = float(len(places))
    return {
        "top1": (float((places < 1).sum()), count),
        "top10": (float((places < 10).sum()), count),
    }
