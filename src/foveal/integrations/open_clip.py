"""An open_clip model that sorts the pictures of a DALLE: rerank=Reranker(model, tokenizer)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveal.common.packages import need
from foveal.layers.weights import device_of, dtype_of
from foveal.models.base import evaluating

need("open_clip", "foveal.integrations.open_clip")

from open_clip.transform import PreprocessCfg, image_transform_v2  # noqa: E402

__all__ = ["Reranker"]


class Reranker(nn.Module):
    """How well each text fits its picture, in the eyes of an open_clip model.

    Pictures go the way of picture files: bytes, then open_clip's own transform for this model.
    Texts are strings, which its own tokenizer reads: a DALLE hands on the strings that it draws.

    Args:
        model: of open_clip.create_model and the like; it becomes a part of this one.
        tokenizer: of open_clip.get_tokenizer, for the same model.

    Attributes:
        reads_strings: what `generate_images` asks: texts, not the DALLE's tokens.
        transform: open_clip's, from a PIL picture to (3, height, width).

    Raises:
        ValueError: no open_clip model, or a tokenizer of another one.
    """

    reads_strings = True
    model: Any

    def __init__(self, model: Any, tokenizer: Callable[..., Tensor]) -> None:
        super().__init__()
        for name in ("encode_image", "encode_text", "visual", "logit_scale"):
            if not hasattr(model, name):
                raise ValueError(f"model must be one of open_clip, got {type(model).__name__}.")
        self.model, self.tokenizer = model, tokenizer
        known = getattr(model.visual, "preprocess_cfg", None)
        known = known or {"size": getattr(model.visual, "image_size", 224)}
        self.transform = image_transform_v2(PreprocessCfg(**known), is_train=False)
        self._check_tokenizer()

    @torch.no_grad()
    def forward(self, text: Sequence[str], image: Tensor, return_loss: bool = False) -> Tensor:
        """Scores of pairs.

        Args:
            text: a string for each picture.
            image: (batch, 1 or 3, height, width), values from 0 to 1.
            return_loss: must be False: open_clip's models are not trained here.

        Returns:
            (batch,) float: logits as open_clip computes them, cosine times scale.

        Raises:
            ValueError: pictures or texts that are none.
        """
        if return_loss:
            raise ValueError("return_loss must be False: a reranker is not trained.")
        texts = [text] if isinstance(text, str) else list(text)
        if len(texts) != len(image) or not all(isinstance(one, str) for one in texts):
            raise ValueError(
                f"text must be {len(image)} strings, one a picture, got {text!r:.80}."
            )
        device = device_of(self.model)
        tokens, pictures = self.tokenizer(texts).to(device), self.preprocess(image)
        with evaluating(self.model):
            words = self.model.encode_text(tokens, normalize=True)
            seen = self.model.encode_image(pictures, normalize=True)
            scores = (words * seen).sum(-1) * self.model.logit_scale.exp()
        bias = getattr(self.model, "logit_bias", None)
        return (scores if bias is None else scores + bias).float()

    def preprocess(self, image: Tensor) -> Tensor:
        """Pictures (batch, 1 or 3, height, width) in [0, 1] -> what the model's eye reads."""
        if image.ndim != 4 or image.shape[1] not in (1, 3) or not image.is_floating_point():
            raise ValueError(
                "image must be floats (batch, 1 or 3, height, width), got "
                f"{image.dtype} of shape {tuple(image.shape)}."
            )
        from PIL import Image

        pixels = (image.detach().float() * 255).round().clamp(0, 255).to(torch.uint8)
        rows = pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()
        read = torch.stack([self.transform(Image.fromarray(one)) for one in rows])
        return read.to(device_of(self.model), dtype_of(self.model))

    def _check_tokenizer(self) -> None:
        tokens: Any = self.tokenizer(["a picture"])
        for home in (self.model, getattr(self.model, "text", None)):
            length, words = (
                getattr(home, name, None) for name in ("context_length", "vocab_size")
            )
            if isinstance(length, int) and tokens.shape[1] != length:
                raise ValueError(
                    f"tokenizer must be that of the model, which reads {length} tokens, got one "
                    f"that gives {tokens.shape[1]}; see open_clip.get_tokenizer."
                )
            if isinstance(words, int) and int(tokens.max()) >= words:
                raise ValueError(
                    f"tokenizer must be that of the model, which knows {words:,} tokens, got one "
                    f"that gives token {int(tokens.max()):,}; see open_clip.get_tokenizer."
                )
