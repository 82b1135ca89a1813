"""The task of CLIP: which caption goes with which picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveal.data.captioned_set import LazyCaptionedSet, LazyWords
from foveal.data.captions import CaptionDataConfig, CaptionedPictures, CaptionedSet
from foveal.data.sampling import spread
from foveal.data.tokens import CaptionTokenizer
from foveal.models.clip import CLIP
from foveal.recipes.assets import read_asset
from foveal.recipes.captioned import Captioned
from foveal.recipes.kind import KindTask, Run, seeded_model
from foveal.recipes.settings import RunConfig
from foveal.training.dealing import dealt
from foveal.training.processes import rows_of_all
from foveal.training.task import Totals

_LEARNED_FROM = 200_000  # pictures whose captions byte pairs are learned from, of larger sets
CANDIDATES = 100
"""Captions among which the right one has to be found."""


class Captions(Captioned):
    """What tasks share that read captions: byte pairs that are learned from them."""

    assets = ("tokenizer",)

    def make_assets(self, train: CaptionedSet, data: CaptionDataConfig) -> dict[str, Any]:
        """The tokenizer."""
        texts = train.some_captions(_LEARNED_FROM)
        return {"tokenizer": CaptionTokenizer.train(texts, data.vocabulary)}

    def words(self, task: KindTask) -> Tensor | LazyWords:
        """Tokens of all captions of the training pictures; made later where these are read so."""
        length, tokenizer = task.config.data.text_length, task.assets["tokenizer"]
        if isinstance(task.train, LazyCaptionedSet):
            return LazyWords(task.train, lambda texts: caption_tokens(tokenizer, texts, length))
        return caption_tokens(tokenizer, task.train.all_captions, length)


class Clip(Captions):
    """CLIP."""

    data = CaptionDataConfig
    unit = "pairs"
    score = "top10"

    def build(self, config: RunConfig, **assets: Any) -> CLIP:
        """The model of a configuration; ValueError for one that is no CLIP."""
        model = seeded_model(
            config,
            num_text_tokens=assets["tokenizer"].vocab_size,
            text_seq_len=config.data.text_length,
            visual_image_size=config.data.size,
        )
        if not isinstance(model, CLIP):
            raise ValueError(f"the task 'clip' needs a CLIP, got {config.model['name']!r}.")
        return model

    def source(self, task: KindTask) -> CaptionedPictures:
        """Pictures, each with one of its captions."""
        transform = task.config.data.transform
        return CaptionedPictures(task.train, self.words(task), transform=transform)

    def loss(self, task: KindTask, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Contrastive loss in nats within a micro-batch of all processes."""
        gather = rows_of_all if task.layout.size > 1 else None
        loss: Tensor = model(*batch, return_loss=True, gather=gather)
        return loss

    def evaluate(self, task: KindTask, *, quick: bool, rank: int, world_size: int) -> Totals:
        """How often the right caption is first, or in the first ten, of 100 held-out ones."""
        index = spread(len(task.held_out), self.most(task.config.data))
        captions, images = task.held_out.first_captions(index), task.held_out.images(index)
        model: Any = task.model
        places = retrieve(model, task.assets["tokenizer"], images, captions)
        return retrieval_totals(places[rank::world_size])

    def facts(self, task: KindTask) -> dict[str, str]:
        candidates = min(CANDIDATES, len(task.held_out))
        return super().facts(task) | {"retrieval": f"of one caption among {candidates}"}

    def scores(self, run: Run, model: Any, found: CaptionedSet) -> dict[str, float]:
        tokenizer = read_asset("tokenizer", run.folder)
        return score_clip(model, tokenizer, found.images(), found.first_captions())


KIND = Clip()


def caption_tokens(
    tokenizer: CaptionTokenizer, captions: Sequence[str], text_length: int
) -> Tensor:
    """Tokens (captions, text_length); what is longer is cut."""
    return tokenizer.tokenize(captions, text_length, truncate_text=True)


def fit(images: Tensor, clip: CLIP) -> Tensor:
    """Pictures at the size that CLIP reads."""
    if tuple(images.shape[2:]) == clip.settings.pixels:
        return images
    return F.interpolate(images, clip.settings.pixels, mode="bilinear", antialias=True)


def score_clip(
    clip: CLIP, tokenizer: CaptionTokenizer, images: Tensor, captions: Sequence[str]
) -> dict[str, float]:
    """The scores of CLIP on pictures and their captions."""
    scores = shares(retrieve(clip, tokenizer, fit(images, clip), captions))
    return {**scores, "chance_top10": min(1.0, 10 / min(CANDIDATES, len(captions)))}


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

    def places(group: Tensor) -> Tensor:
        words = clip.encode_text(tokens[group].to(device))
        pictures = clip.encode_image(images[group].to(device))
        similarity = (pictures @ words.T).float().cpu()
        own = similarity.diagonal()[:, None]
        # of equal ones half are counted, so that a model that says nothing is right by chance
        return (similarity > own).sum(1) + ((similarity == own).sum(1) - 1) / 2

    least = min(CANDIDATES, len(images))
    groups = [group for group in order.split(CANDIDATES) if len(group) >= least]
    return torch.cat(dealt(groups, places))


def retrieval_totals(places: Tensor) -> Totals:
    """Sums and counts of places that are the first, or among the first ten."""
    count = float(len(places))
    return {
        "top1": (float((places < 1).sum()), count),
        "top10": (float((places < 10).sum()), count),
    }


def shares(places: Tensor) -> dict[str, float]:
    """The same, each as a share."""
    return {name: total / count for name, (total, count) in retrieval_totals(places).items()}
