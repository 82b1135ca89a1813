"""foveal's causal language models as models of transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NoReturn, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import TransformersKwargs

from foveal.common.words import suggest
from foveal.integrations.transformers.cache import FovealCache
from foveal.integrations.transformers.config import FovealConfig
from foveal.integrations.transformers.padding import (
    check_mask,
    check_positions,
    without_first,
    without_padding,
)
from foveal.models.causal import CausalLM
from foveal.models.registry import family
from foveal.models.vocabulary import check_vocabulary

_OTHERS = {*TransformersKwargs.__annotations__, "shift_labels", "ignore_index"}
"""Keywords that transformers may hand to any model."""
_OF_GENERATE = ("tokenizer", "assistant_tokenizer")
"""Keywords of `generate` itself, which it hands on for models to ignore."""
_DRAWN = (nn.Linear, nn.Embedding)
"""Layers that may be drawn anew under `ignore_mismatched_sizes`, as transformers draws them."""


class FovealForCausalLM(PreTrainedModel, GenerationMixin):
    """A causal language model of foveal: TransformerLM, HourglassTransformerLM, HTransformer1D, or
    another CausalLM that was registered.

    The weights are the model's own, under `foveal.` in front of their names; on disk they have
    the names that foveal gives them, so either package opens what the other has saved. Padding is
    taken out of each row before the model sees it, wherever it stands; a row gives what it gives
    alone.

    Args:
        config: family and keywords.
        model: a model that exists, to be wrapped; one with random weights is made when None.

    Attributes:
        foveal: the model.

    Raises:
        ValueError: the family is no causal language model.

    Example:
        >>> import torch, foveal
        >>> from foveal.integrations.transformers import FovealForCausalLM
        >>> model = foveal.TransformerLM(dim=32, depth=1, heads=2)
        >>> wrapped = FovealForCausalLM.from_foveal(model).eval()
        >>> wrapped.generate(torch.zeros(1, 3, dtype=torch.long), max_new_tokens=5).shape
        torch.Size([1, 8])
    """

    config_class = FovealConfig
    base_model_prefix = "foveal"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _is_stateful = True  # what was read cannot be taken back
    _no_split_modules = ("Block", "ResidualBlock")

    def __init__(self, config: FovealConfig, model: CausalLM | None = None) -> None:
        super().__init__(config)
        made = model is None
        self.foveal = _causal(config) if model is None else model
        _check_causal(self.foveal)
        self._checkpoints = False
        if not made or not self.foveal.token_emb.weight.is_meta:
            for value in (*self.foveal.parameters(), *self.foveal.buffers()):
                value._is_hf_initialized = True  # type: ignore[attr-defined]
        self._tied_weights_keys = self._ties()
        self.post_init()

    @classmethod
    def from_foveal(cls, model: CausalLM) -> Self:
        """A model that exists, wrapped: it is the same one, not a copy.

        Raises:
            ValueError: it is no causal language model.
        """
        _check_causal(model)
        wrapped = cls(FovealConfig.of(model), model)
        return wrapped.train(model.training)

    @property
    def model(self) -> CausalLM:
        """The foveal model within."""
        return self.foveal

    # -- files ------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **options: Any) -> Any:
        """As of transformers; but weights that are missing or left over raise.

        Raises:
            ValueError: weights and configuration do not fit.
        """
        model, info = super().from_pretrained(*args, output_loading_info=True, **options)
        _check_loaded(model, info, args, bool(options.get("ignore_mismatched_sizes")))
        return (model, info) if output_loading_info else model

    def save_pretrained(
        self, save_directory: Any, *args: Any, state_dict: Any = None, **options: Any
    ) -> None:
        """As of transformers; the folder can be opened by `foveal.load_model`, too."""
        self.config.family, self.config.config = (
            self.foveal.family,
            self.foveal.settings.to_json(),
        )
        given = self.state_dict() if state_dict is None else state_dict
        adapted = getattr(self, "_hf_peft_config_loaded", False)
        if not adapted and not any(getattr(one, "is_meta", False) for one in given.values()):
            tied, prefix = self._ties(), f"{self.base_model_prefix}."
            given = {k.removeprefix(prefix): v for k, v in given.items() if k not in tied}
            state_dict = given
        super().save_pretrained(save_directory, *args, state_dict=state_dict, **options)

    def _ties(self) -> dict[str, str]:
        """Names of parameters that are others: name -> its first name."""
        first: dict[int, str] = {}
        tied = {}
        for name, value in self.named_parameters(remove_duplicate=False):
            if first.setdefault(id(value), name) != name:
                tied[name] = first[id(value)]
        return tied

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Parameters that are one, as they are now: name -> its first name."""
        return self._ties()

    # -- parts ------------------------------------------------------------------------------

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of the tokens."""
        return self.foveal.token_emb

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Exchange the embedding of the tokens."""
        self.foveal.token_emb = cast(nn.Embedding, value)

    def get_output_embeddings(self) -> nn.Module | None:
        """The output layer; None where the embedding is used for it."""
        return self.foveal.to_logits

    def set_output_embeddings(self, new_embeddings: nn.Module | None) -> None:
        """Exchange the output layer."""
        if self.foveal.to_logits is None and new_embeddings is not None:
            raise ValueError(
                "the model's output layer is its embedding (tie_embeddings=True); exchange that "
                "one with set_input_embeddings."
            )
        self.foveal.to_logits = cast(nn.Linear, new_embeddings)

    def resize_token_embeddings(self, *args: Any, **options: Any) -> nn.Module:
        """Another number of tokens, as of transformers."""
        embedding: nn.Module = super().resize_token_embeddings(*args, **options)
        settings: Any = self.foveal.settings
        if settings.num_tokens != self.config.vocab_size:
            settings = dataclasses.replace(settings, num_tokens=self.config.vocab_size)
            self.foveal.settings, self.foveal.num_tokens = settings, settings.num_tokens
        return embedding

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Callable[..., Any] = checkpoint,
        every_n_layers: int = 1,
    ) -> None:
        """Our activation checkpointing, which recomputes each block without re-entering."""
        used = getattr(gradient_checkpointing_func, "func", gradient_checkpointing_func)
        if enable and (every_n_layers != 1 or used is not checkpoint):
            raise ValueError(
                "foveal recomputes every block and keeps its inputs where they are, got "
                f"every_n_layers={every_n_layers} or offload=True; leave them out."
            )
        self.foveal.activation_checkpointing(enable)
        self._checkpoints = enable

    @property
    def is_activation_checkpointing(self) -> bool:
        """Whether blocks are recomputed in the backward pass."""
        return self._checkpoints

    # -- forward ----------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache: FovealCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        past_key_values: FovealCache | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits of every position, as the models of transformers give them.

        Args:
            input_ids: (batch, length) int.
            attention_mask: (batch, length), or as long as the cache and the input together; 0 or
                False = padding, on either side.
            position_ids: (batch, length) int. What follows from the mask need not be said; 0, 1,
                2, ... in each document of a row packs documents, where the model can do that.
            inputs_embeds: must be None.
            cache: from an earlier call; read on without gradients.
            labels: (batch, length) int, -100 = ignored: adds the loss of each next token.
            use_cache: also give a cache, without gradients. Not while training.
            logits_to_keep: logits of the last so many positions, or of those listed; 0: of all.
            return_dict: False gives a tuple.
            past_key_values: the former name of cache.
            others: num_items_in_batch and what else concerns the loss.

        Returns:
            loss (if there are labels), logits (batch, length or fewer, num_tokens), and cache.

        Raises:
            ValueError: what foveal's models do not have, shapes that do not fit, or more tokens
                than max_seq_len.
        """
        _check_others(others)
        if input_ids is None or inputs_embeds is not None:
            raise ValueError(
                "input_ids must be given, and no inputs_embeds: foveal's models embed tokens "
                "themselves."
            )
        cache = _as_cache(past_key_values if cache is None else cache)
        if cache is None and use_cache and not (self.training and torch.is_grad_enabled()):
            cache = FovealCache()
        seen = 0 if cache is None else cache.columns
        real = check_mask(attention_mask, input_ids, seen)
        packed = check_positions(position_ids, attention_mask, input_ids, seen)
        logits = self._run(input_ids, real, packed, cache, logits_to_keep)
        loss = self._loss(logits, labels, real, logits_to_keep, others)
        out = CausalLMOutputWithPast(loss=loss, logits=logits, cache=cache)
        whole = self.config.return_dict if return_dict is None else return_dict
        return out if whole else cast(tuple[Any, ...], out.to_tuple())

    def _run(
        self,
        tokens: Tensor,
        real: Tensor | None,
        packed: Tensor | None,
        cache: FovealCache | None,
        keep: int | Tensor,
    ) -> Tensor:
        only_last = isinstance(keep, int) and keep == 1
        if packed is not None:
            if cache is not None or real is not None or not getattr(self.foveal, "packs", False):
                _refuse_documents(self.foveal)
            logits = self.foveal(tokens, position_ids=packed)
        elif cache is not None:
            logits = cache.read(self.foveal, tokens, real, only_last)
        elif real is not None:
            logits = without_padding(self.foveal, tokens, real)
        else:
            logits = self.foveal(tokens)
        if isinstance(keep, int):
            return cast(Tensor, logits[:, -keep:])
        return cast(Tensor, logits[:, keep])

    def _loss(
        self,
        logits: Tensor,
        labels: Tensor | None,
        real: Tensor | None,
        keep: int | Tensor,
        others: dict[str, Any],
    ) -> Tensor | None:
        if labels is None:
            return None
        if labels.shape != logits.shape[:2]:
            raise ValueError(
                f"labels must have the shape of input_ids, got {tuple(labels.shape)} for logits "
                f"of {tuple(logits.shape[:2])} positions (logits_to_keep={keep!r})."
            )
        loss: Tensor = self.loss_function(
            logits=logits,
            labels=without_first(labels, real),
            vocab_size=logits.shape[-1],
            **{k: v for k, v in others.items() if k in ("num_items_in_batch", *_LOSS)},
        )
        return loss

    # -- generate ---------------------------------------------------------------------------

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, is_first_iteration: bool | None = False, **kwargs: Any
    ) -> dict[str, Any]:
        """What `forward` gets: positions are checked once, later ones follow."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, *args, is_first_iteration=is_first_iteration, **kwargs
        )
        for name in _OF_GENERATE:
            inputs.pop(name, None)
        if not is_first_iteration:
            inputs.pop("position_ids", None)
        elif inputs["input_ids"] is not None:
            tokens, mask = inputs["input_ids"], inputs.get("attention_mask")
            if mask is not None:
                tokens = tokens[mask[:, -tokens.shape[1] :] != 0][None]
            check_vocabulary(tokens, self.foveal.num_tokens)
        return inputs

    def _validate_generated_length(self, generation_config: Any, *args: Any) -> None:
        super()._validate_generated_length(generation_config, *args)
        most = self.foveal.max_seq_len
        if generation_config.max_length > most:
            raise ValueError(
                f"prompt and new tokens must fit into max_seq_len={most}, got "
                f"{generation_config.max_length} in all; ask for fewer with max_new_tokens, or "
                "shorten the prompt."
            )

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any
    ) -> None:
        given = _as_cache(model_kwargs.get("cache"))
        kind = generation_config.cache_implementation
        if kind not in (None, "dynamic"):
            raise ValueError(
                f"foveal's models have one cache, which their patterns bound, got "
                f"cache_implementation={kind!r}; leave it out."
            )
        if given is not None:
            given._is_user_defined = True  # it goes on after this call
        elif generation_config.use_cache:
            lasts = generation_config.return_dict_in_generate
            most = None if lasts else generation_config.max_length
            model_kwargs["cache"] = FovealCache(most, prepared=not lasts)


_LOSS = ("shift_labels", "ignore_index")


def _causal(config: FovealConfig) -> CausalLM:
    if not issubclass(family(str(config.family)), CausalLM):
        _refuse_family(str(config.family))
    return cast(CausalLM, config.new_model())


def _check_causal(model: Any) -> None:
    if not (isinstance(model, CausalLM) and model.is_causal):
        _refuse_family(getattr(model, "family", type(model).__name__))


def _refuse_family(name: str) -> NoReturn:
    raise ValueError(
        f"AutoModelForCausalLM needs a causal language model, got one of family {name!r} that is "
        "none, for what it gives for a token may depend on later ones, or is no token; open it "
        "with foveal.load_model."
    )


def _check_others(others: dict[str, Any]) -> None:
    unknown = sorted(others.keys() - _OTHERS)
    if unknown:
        known = {*FovealForCausalLM.forward.__annotations__, *_OTHERS} - {"return", "others"}
        hint = suggest(unknown[0], known, "leave it out.")
        raise TypeError(f"forward of a foveal model has no keyword {unknown[0]!r}; {hint}")
    for name in ("output_attentions", "output_hidden_states", "output_router_logits"):
        if others.get(name):
            raise ValueError(
                f"foveal's models give logits only, got {name}=True; for activations put a "
                "forward hook on a module."
            )
    if others.get("is_causal") is False:
        raise ValueError("foveal's causal models cannot read later tokens, got is_causal=False.")


def _as_cache(cache: Any) -> FovealCache | None:
    if cache is None or isinstance(cache, FovealCache):
        return cache
    raise ValueError(
        f"cache must be a FovealCache, got {type(cache).__name__}; start with "
        "foveal.integrations.transformers.FovealCache(), or pass use_cache=True."
    )


def _refuse_documents(model: CausalLM) -> NoReturn:
    raise ValueError(
        "position_ids must count the real tokens of each row from 0 on; documents that start "
        f"again at 0 are for models that pack them (not {type(model).__name__}), "
        "without padding and without a cache. TransformerLM does."
        if not getattr(model, "packs", False)
        else "position_ids must count the real tokens of each row from 0 on; documents that start "
        "again at 0 go without padding and without a cache (use_cache=False)."
    )


def _check_loaded(
    model: Any, info: dict[str, Any], source: tuple[Any, ...], redrawn_allowed: bool
) -> None:
    """Raise ValueError unless each weight was in the file, and none besides."""
    faults = [f"{name} is missing" for name in info["missing_keys"]]
    faults += [f"{name} is not part of the model" for name in info["unexpected_keys"]]
    for name, *shapes in info["mismatched_keys"]:
        owner = model.get_submodule(name.rpartition(".")[0])
        if not redrawn_allowed or not isinstance(owner, _DRAWN):
            faults.append(f"{name} has shape {tuple(shapes[0])}, expected {tuple(shapes[1])}")
    if faults:
        where = source[0] if source and source[0] is not None else "the state dict"
        shown = "; ".join(sorted(faults)[:3]) + ("; ..." if len(faults) > 3 else "")
        raise ValueError(
            f"{where} does not fit its configuration: {shown} ({len(faults)} in all)."
        )


AutoConfig.register(FovealConfig.model_type, FovealConfig, exist_ok=True)
AutoModelForCausalLM.register(FovealConfig, FovealForCausalLM, exist_ok=True)
