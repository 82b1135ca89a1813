"""The configuration of a foveal model as one of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from foveal.common.words import shorten
from foveal.models.base import Model
from foveal.models.config import ModelConfig
from foveal.models.registry import family
from foveal.models.storage import MODEL_TYPE


class FovealConfig(PretrainedConfig):
    """What transformers keeps of a foveal model: its family, and the family's keywords.

    `config.json` is the one that `save_pretrained` of a foveal model writes. The names that
    transformers knows (vocab_size, hidden_size, ...) are read from the keywords, and vocab_size
    and max_position_embeddings may be set.

    Args:
        family: as in `foveal.create_model`: "transformer", "hourglass", "htransformer", or one
            that was registered with `foveal.models.registry.register`.
        config: keywords of the family; those left out are its defaults. Patterns as text, as
            dicts, or as they are.

    Raises:
        ValueError: no family, one that is not known, or keywords that it does not have.

    Example:
        >>> from foveal.integrations.transformers import FovealConfig
        >>> FovealConfig(family="transformer", config={"dim": 64, "heads": 2}).hidden_size
        64
    """

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference = ("cache", "past_key_values")

    family: str | None = None
    config: dict[str, Any] | None = None

    def __post_init__(self, **others: Any) -> None:
        if not isinstance(self.family, str):
            raise ValueError(
                "family must name a family of foveal models, for example 'transformer', got "
                f"family={self.family!r}; is this the configuration of another package's model?"
            )
        if not isinstance(self.config, Mapping | None):
            raise ValueError(
                f"config must be keywords of the family {self.family!r}, got config="
                f"{shorten(repr(self.config), 60)}."
            )
        known = _config_class(self.family)
        self.config = known.from_json(dict(self.config or {})).to_json()
        inside = [name for name in others if name in known.names()]
        if inside:
            raise ValueError(
                f"keywords of the family go into config, got {inside[0]}={others[inside[0]]!r} "
                f"beside it; write config={{{inside[0]!r}: ...}}."
            )
        super().__post_init__(**others)

    @classmethod
    def of(cls, model: Model) -> FovealConfig:
        """The configuration of a model that exists."""
        return cls(family=model.family, config=model.settings.to_json())

    @property
    def settings(self) -> ModelConfig:
        """The family's own configuration."""
        return _config_class(str(self.family)).from_json(dict(self.config or {}))

    def new_model(self) -> Model:
        """A model of the family, with random weights."""
        model: Model = family(str(self.family))(self.settings)
        return model

    # -- names of transformers ------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return int(self._keyword("vocab_size", "num_tokens"))

    @vocab_size.setter
    def vocab_size(self, value: int) -> None:
        self._set_keyword("vocab_size", "num_tokens", value)

    @property
    def max_position_embeddings(self) -> int:
        """Most tokens of a sequence."""
        return int(self._keyword("max_position_embeddings", "max_seq_len"))

    @max_position_embeddings.setter
    def max_position_embeddings(self, value: int) -> None:
        self._set_keyword("max_position_embeddings", "max_seq_len", value)

    @property
    def hidden_size(self) -> int:
        """Features of a token."""
        return int(self._keyword("hidden_size", "dim"))

    @property
    def num_attention_heads(self) -> int:
        """Heads of a layer."""
        return int(self._keyword("num_attention_heads", "heads"))

    @property
    def num_hidden_layers(self) -> int:
        """Blocks, of all stages."""
        return _total(self._keyword("num_hidden_layers", "depth"))

    @property
    def tie_word_embeddings(self) -> bool:
        """Whether the embedding is the output layer."""
        return bool(self._keyword("tie_word_embeddings", "tie_embeddings"))

    def _keyword(self, name: str, ours: str) -> Any:
        value = getattr(self.settings, ours, None)
        if value is None:
            raise AttributeError(f"a model of family {self.family!r} has no {name}.")
        return value

    def _set_keyword(self, name: str, ours: str, value: Any) -> None:
        self._keyword(name, ours)
        changed = _config_class(str(self.family)).from_json({**(self.config or {}), ours: value})
        self.config = changed.to_json()


def _config_class(name: str) -> type[ModelConfig]:
    found: type[ModelConfig] = family(name).config_class
    return found


def _total(depth: Any) -> int:
    return sum(map(_total, depth)) if isinstance(depth, list | tuple) else int(depth)
