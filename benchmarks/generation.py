"""Generated tokens beside reading the weights once for each, the floor of any generation.

python benchmarks/run.py token
python benchmarks/run.py graph --device cuda

At batch 1 every weight is read from memory for every token and used once; adding up a matrix reads
it with all cores. Models are larger than the processor's caches. An Hourglass needs its inner
weights for every third token only, so that it may come below this floor.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import nn

from foveal import patterns as P
from foveal.bench import Case
from foveal.bench.case import Job
from foveal.generation import Decoder, Recorded
from foveal.models import DALLE, HourglassTransformerLM, HTransformer1D, TransformerLM
from foveal.models.dalle.generate import Pictures
from foveal.recipes.build import build_model
from foveal.recipes.config import load_recipe

PROMPT = 512
TOKENS = 16  # in one turn
LM = {"num_tokens": 256, "dim": 1024, "heads": 16, "dim_head": 64, "max_seq_len": 1 << 16}
MODELS = {
    "transformer": lambda: TransformerLM(**LM, depth=8, pattern=P.SlidingWindow(256)),
    "htransformer": lambda: HTransformer1D(**LM, depth=8, causal=True),
    "hourglass": lambda: HourglassTransformerLM(**LM, depth=(2, 4, 2), shorten_factor=3),
}
WRITTEN = 250
"""Bytes that the model of `make run` writes in one turn; it is read from a processor's caches."""
DRAWING = {
    "dim": 1024,
    "depth": 8,
    "heads": 16,
    "dim_head": 64,
    "num_text_tokens": 10_000,
    "text_seq_len": 256,
    "num_image_tokens": 8192,
    "image_grid": (32, 32),
    "attn_types": ("full", "axial_row", "axial_col", "conv_like"),
}


def read_weights(model: nn.Module) -> Job:
    """The sum of each weight matrix; embeddings are looked up, not read."""
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]

    @torch.no_grad()
    def job() -> None:
        for _ in range(TOKENS):
            for weight in weights:
                weight.sum()

    return job


class Steps:
    """TOKENS tokens a turn; from the prompt again where `count` are reached."""

    def __init__(self, prefill: Callable, step: Callable, count: int) -> None:
        self.prefill, self.step, self.count = prefill, step, count
        self.start()

    def start(self) -> None:
        self.done, self.cache = 0, self.prefill()[1]

    def __call__(self) -> None:
        if self.done + TOKENS > self.count:
            self.start()
        for _ in range(TOKENS):
            self.cache = self.step(self.cache)[1]
        self.done += TOKENS


def make_language(name: str, contender: str, run: str, device: str) -> Job:
    torch.manual_seed(0)
    model = MODELS[name]().to(device).eval()
    if contender != "foveal":
        return read_weights(model)
    prompt = torch.randint(0, 256, (1, PROMPT), device=device)
    most = 2048
    prefill = functools.partial(model.prefill, prompt, PROMPT + most)
    return Steps(prefill, functools.partial(model.step, prompt[:, 0]), most)


def make_recipe(contender: str, run: str, device: str) -> Job:
    """The model of `make run` before its training."""
    torch.manual_seed(0)
    config = load_recipe("bytes-hourglass")
    options = {"max_seq_len": config.data.context, **config.model}
    model = build_model(options, "[model]").to(device).eval()
    cached = contender == "foveal"
    return lambda: model.generate([[10]], WRITTEN, seed=0, use_cache=cached)


def make_recorded(contender: str, run: str, device: str) -> Job:
    torch.manual_seed(0)
    model = DALLE(**DRAWING).to(device, torch.bfloat16).eval()
    decoder: Decoder = Pictures(model, torch.randint(1, 10_000, (1, 256), device=device), 1.0)
    if contender == "recorded":
        decoder = Recorded(decoder, model.max_seq_len)
    token = torch.zeros(1, dtype=torch.long, device=device)
    prefill = functools.partial(decoder.prefill, token[None])
    return Steps(prefill, functools.partial(decoder.step, token), 1000)


def make_drawing(contender: str, run: str, device: str) -> Job:
    torch.manual_seed(0)
    model = DALLE(**DRAWING).to(device).eval()
    if contender != "foveal":
        return read_weights(model)
    text = torch.randint(1, 10_000, (1, 256), device=device)
    token = torch.zeros(1, dtype=torch.long, device=device)
    return Steps(
        functools.partial(model.prefill, text), functools.partial(model.step, token), 1000
    )


def case(name: str, title: str, make: functools.partial) -> Case:
    return Case(
        f"token-{name}",
        f"{TOKENS} more tokens of {title}; batch 1, float32",
        ("foveal", "reading the weights once"),
        make,
        runs=("forward",),
        seconds=1.0,
    )


CASES = [
    *(
        case(name, title, functools.partial(make_language, name))
        for name, title in (
            ("transformer", "TransformerLM, dim 1024, 8 layers, window of 256, after 512"),
            ("htransformer", "HTransformer1D, dim 1024, 8 layers, after 512"),
            (
                "hourglass",
                "HourglassTransformerLM, dim 1024, depth (2, 4, 2), factor 3, after 512",
            ),
        )
    ),
    Case(
        "token-recipe",
        f"{WRITTEN} bytes by the model of make run; batch 1, float32",
        ("foveal", "every byte read again"),
        make_recipe,
        runs=("forward",),
        seconds=1.0,
    ),
    Case(
        "graph-dalle",
        f"{TOKENS} more tokens of DALLE, dim 1024, 8 layers, 256 words; batch 1, bfloat16",
        ("recorded", "step by step"),
        make_recorded,
        runs=("forward",),
        dtype="bfloat16",
        devices=("cuda",),
    ),
    case("dalle", "DALLE, dim 1024, 8 layers, 256 words", functools.partial(make_drawing)),
]
