"""DALL-E over many ranks: the losses and gradients of one process."""

import copy
import threading

import pytest
import torch

import foveal
from foveal import parallel
from foveal import patterns as P

TINY = {
    "dim": 24,
    "depth": 3,
    "heads": 2,
    "dim_head": 12,
    "num_text_tokens": 30,
    "text_seq_len": 7,
    "num_image_tokens": 20,
    "image_grid": (4, 5),
}
MODELS = {
    "rows, columns, windows": {
        "attn_types": ("axial_row", "axial_col", "conv_like"),
        "kernel_size": 3,
    },
    "all and some, all else": {
        "attn_types": ("full", "sparse", "mlp"),
        "stable": True,
        "sandwich_norm": True,
        "shared_ff_ids": (0, 1, 0),
        "share_input_output_emb": True,
    },
    "reversible": {"attn_types": ("axial_col", "full"), "reversible": True},
    "the paper's": {
        "attn_types": ("paper_row", "paper_col", "paper_conv"),
        "rotary_emb": False,
        "shift_tokens": False,
        "activation": "gelu",
    },
    "the package's": {
        "attn_types": (P.Neighborhood((4, 5), 3, causal="corner"), "axial_row"),
        "compat": "dalle-pytorch-1.6.6",
        "stable": True,
    },
}


def inputs(tokens=20):
    text = torch.randint(1, 30, (2, 5))
    text[0, 3:] = 0
    return text, torch.randint(20, (2, tokens))


def trained(model, text, image, **options):
    """The loss, and the gradient of every weight."""
    model.zero_grad()
    loss = model(text, image, return_loss=True, **options)
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters()]


def compare(model, ranks, align, text, image, **options):
    wanted, expected = trained(model, text, image, **options)

    def act(rank):
        mine = parallel.shard_sequence(copy.deepcopy(model), rank, align)
        return trained(mine, text, image, **options)

    losses, grads = zip(*parallel.simulate(ranks, act), strict=True)
    torch.testing.assert_close(sum(losses), wanted, rtol=1e-12, atol=0)
    for parts, one in zip(zip(*grads, strict=True), expected, strict=True):
        torch.testing.assert_close(sum(parts), one, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_ranks_train_what_one_process_trains(name):
    """The whole loss, of texts and pictures, to 1e-12; every weight gets a gradient on every rank,
    and together those of one process, to 1e-10. Borders in the text, in a row and between rows;
    recomputed on two ranks."""
    torch.manual_seed(0)
    model = foveal.DALLE(**TINY, **MODELS[name]).double()
    compare(model, 4, 1, *inputs())
    compare(model.activation_checkpointing(), 2, 13, *inputs())


@pytest.mark.parametrize("tokens", [1, 19])
def test_parts_of_a_picture_count_their_own_tokens(tokens):
    """The loss of the beginning of a picture, on more ranks than it has rows."""
    torch.manual_seed(1)
    compare(foveal.DALLE(**TINY).double(), 5, 1, *inputs(tokens))


def test_ranks_leave_out_the_same_texts(monkeypatch):
    """For guidance, the first rank draws for all."""
    torch.manual_seed(2)
    model = foveal.DALLE(**TINY).double()
    text, image = inputs()
    wanted = model(text * torch.tensor([[0], [1]]), image, return_loss=True)
    here = threading.local()

    def act(rank):
        here.draws = [[0.1], [0.9]] if rank.rank == 0 else [[0.9], [0.1]]
        mine = parallel.shard_sequence(copy.deepcopy(model), rank)
        return mine(text, image, return_loss=True, null_cond_prob=0.5)

    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(here.draws))
    found = parallel.simulate(3, act)
    torch.testing.assert_close(sum(found), wanted, rtol=1e-12, atol=0)


def test_logits_are_those_of_the_own_part():
    """With words and pixels in one part, in float64."""
    torch.manual_seed(3)
    model = foveal.DALLE(**TINY).double().eval()
    text, image = inputs()
    wanted = model(text, image)

    def act(rank):
        return parallel.shard_sequence(copy.deepcopy(model), rank, align=5)(text, image)

    found = parallel.simulate(3, act)
    assert [x.shape[1] for x in found] == [5, 10, 12]
    torch.testing.assert_close(torch.cat(found, 1), wanted, rtol=0, atol=1e-10)
