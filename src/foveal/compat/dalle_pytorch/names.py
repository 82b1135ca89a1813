"""Names of dalle-pytorch's parameters and of ours, for reading and for writing.

Tables map theirs to ours. Layers that share their weights are repeated in the package, so several
of theirs may be one of ours.
"""

from __future__ import annotations

from foveal.compat.files import Weights
from foveal.compat.upstream import Table, to_ours
from foveal.layers.grid_rotary import text_image_angles
from foveal.models.clip.model import CLIP
from foveal.models.dalle.model import DALLE
from foveal.models.dalle.transformer import Transformer

ATTENTION = {
    "to_qkv.weight": "to_qkv.weight",
    "to_out.0.weight": "to_out.0.weight",
    "to_out.0.bias": "to_out.0.bias",
}
FEED_FORWARD = {
    "net.0.weight": "to_hidden.weight",
    "net.0.bias": "to_hidden.bias",
    "net.3.weight": "to_out.weight",
    "net.3.bias": "to_out.bias",
}
SHELL = {
    "to_logits.0.weight": "norm.weight",
    "to_logits.0.bias": "norm.bias",
    "to_logits.1.weight": "to_logits.weight",
    "to_logits.1.bias": "to_logits.bias",
}
EMBEDDINGS = {"text_emb.weight": "text_emb.weight", "image_emb.weight": "image_emb.weight"}
TIED = {
    f"{kind}_emb.linear.{part}": f"to_logits.{part}"
    for kind in ("text", "image")
    for part in ("weight", "bias")
}
POSITIONS = {
    "text_pos_emb.weight": "text_pos_emb.weight",
    "image_pos_emb.weights.0": "row_emb",
    "image_pos_emb.weights.1": "column_emb",
}


def transformer_names(
    t: Transformer, prefix: str = "transformer.", shifted: bool = False
) -> Table:
    """Names of the parameters of a transformer that stands under `prefix`."""
    table = {}
    sandwich = any(name.endswith("norm_out.weight") for name, _ in t.named_parameters())
    for layer, plan in enumerate(t.plan):
        for which, part in enumerate((ATTENTION, FEED_FORWARD)):
            theirs = f"layers.layers.{layer}.{which}"
            if t.reversible:
                theirs = f"layers.blocks.{layer}.{'fg'[which]}.net"
            around = f"branches.{2 * layer + which}"
            table[f"{theirs}.scale"] = f"{around}.scale"
            norms = ("norm", "norm_out") if sandwich else ("norm",)
            for norm in norms:
                for kind in ("weight", "bias"):
                    table[f"{theirs}.fn.{norm}.{kind}"] = f"{around}.{norm}.{kind}"
            inner = f"{('attentions', 'feed_forwards')[which]}.{plan[which]}"
            # a scale, a norm, and around attention what gives it a key in the cache
            depth = 2 + (which == 0) + 2 * shifted
            for name, ours in part.items():
                table[f"{theirs}{'.fn' * depth}.{name}"] = f"{inner}.{ours}"
    return {prefix + theirs: prefix + ours for theirs, ours in table.items()}


def dalle_names(model: DALLE) -> Table:
    """Names of the parameters of a DALLE, those of its VAE included."""
    c = model.settings
    table = transformer_names(model.transformer, shifted=c.shift_tokens) | SHELL
    table |= TIED if c.share_input_output_emb else EMBEDDINGS
    if not c.rotary_emb:
        table |= POSITIONS
    table |= {name: name for name, _ in model.named_parameters() if name.startswith("vae.")}
    return table


def clip_names(model: CLIP) -> Table:
    """Names of the parameters of a CLIP."""
    table: Table = {}
    for tower in ("text", "visual"):
        prefix = f"{tower}_transformer."
        table |= transformer_names(getattr(model, f"{tower}_transformer"), prefix)
    ours = set(table.values())
    return table | {name: name for name, _ in model.named_parameters() if name not in ours}


def shaped(weights: Weights, model: DALLE | CLIP) -> Weights:
    """Our weights under the package's names, in its shapes, with its buffers."""
    c, result = model.settings, {}
    for name, value in weights.items():
        if name.endswith(".scale"):
            value = value.view(1, 1, -1)
        elif name == "image_pos_emb.weights.0":
            value = value[None, :, None]
        elif name == "image_pos_emb.weights.1":
            value = value[None, None]
        result[name] = value
    if isinstance(model, DALLE) and model.settings.rotary_emb:
        angles = text_image_angles(c.text_seq_len + 1, model.grid, model.settings.dim_head)
        result["transformer.pos_emb"] = angles[None]
    return result


def flat(weights: Weights) -> Weights:
    """The package's weights in our shapes, without its buffers."""
    result = {}
    for name, value in weights.items():
        if name.endswith(".scale"):
            value = value.flatten()
        elif name.startswith("image_pos_emb.weights."):
            value = value.reshape(-1, value.shape[-1])
        if not name.endswith("transformer.pos_emb"):
            result[name] = value
    return result


def accept_clip(model: CLIP, state: Weights, prefix: str) -> None:
    """Our names for the package's in a state dict that a CLIP loads, in place."""
    own = {n.removeprefix(prefix): state.pop(n) for n in list(state) if n.startswith(prefix)}
    renamed = to_ours(clip_names(model), flat(own))
    state.update({prefix + name: value for name, value in renamed.items()})
