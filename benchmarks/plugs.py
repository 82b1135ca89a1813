"""What a plug gains: models of other packages with foveal in them beside without.

    python benchmarks/plugs.py modernbert [gemma3 ...] [--train] [--rounds 3] [--tokens 8192]

Random weights at the published shape, one period of the layers (which all other periods repeat),
float32, one row, no embeddings to vocabulary. Prints the seconds of each way to compute attention
(medians over rounds in which they take turns), and how often faster the last is than the others.
"""

from __future__ import annotations

import argparse
import copy
import platform
from collections.abc import Callable
from typing import Any

import torch
from timing import medians

Jobs = dict[str, Callable[[], object]]


def _transformers(make: Callable[[Any], Any], tokens: int, train: bool) -> Jobs:
    """A pass of a model of transformers, by "sdpa" and by "foveal"."""
    import transformers

    import foveal.integrations.transformers  # noqa: F401

    torch.manual_seed(0)
    first = make(transformers).eval()
    ids = torch.randint(0, 100, (1, tokens))
    jobs: Jobs = {}
    for name in ("sdpa", "foveal"):
        model = copy.deepcopy(first)
        model.set_attn_implementation(name)
        options = {} if model.config.model_type == "modernbert" else {"use_cache": False}

        def job(model: Any = model, options: dict[str, Any] = options) -> None:
            with torch.set_grad_enabled(train):
                out = model(input_ids=ids, **options)[0]
                if train:
                    out.sum().backward()
                    model.zero_grad()

        jobs[name] = job
    return jobs


def modernbert(tokens: int, train: bool) -> Jobs:
    """ModernBERT-base: a global layer and two of half-window 64."""

    def make(package: Any) -> Any:
        config = package.ModernBertConfig(
            num_hidden_layers=3, vocab_size=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            cls_token_id=1, sep_token_id=2,
        )  # fmt: skip
        return package.ModernBertModel(config)

    return _transformers(make, tokens, train)


def gemma3(tokens: int, train: bool) -> Jobs:
    """Gemma-3-1B: five layers with a window of 512 and a global one."""

    def make(package: Any) -> Any:
        config = package.Gemma3TextConfig(
            hidden_size=1152, intermediate_size=6912, num_hidden_layers=6, num_attention_heads=4,
            num_key_value_heads=1, head_dim=256, sliding_window=512, vocab_size=128,
            max_position_embeddings=32768, pad_token_id=0, eos_token_id=1, bos_token_id=2,
        )  # fmt: skip
        return package.Gemma3TextModel(config)

    return _transformers(make, tokens, train)


CASES = {case.__name__: case for case in (modernbert, gemma3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="+", choices=list(CASES))
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train", action="store_true", help="forward and backward")
    asked = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {asked.tokens} tokens"
    )
    for name in asked.cases:
        taken = medians(CASES[name](asked.tokens, asked.train), asked.rounds)
        ours = list(taken.values())[-1]
        each = ", ".join(f"{one} {seconds:.3f} s" for one, seconds in taken.items())
        gains = ", ".join(f"{s / ours:.2f}x {one}" for one, s in list(taken.items())[:-1])
        print(f"{name}: {each}: {gains}", flush=True)


if __name__ == "__main__":
    main()
