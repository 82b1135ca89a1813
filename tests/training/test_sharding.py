"""What is shared out, by which blocks, and in which order; see tests/recipes for processes."""

import pytest
import torch
from torch import nn

from foveal import patterns as P
from foveal.models import DALLE, HTransformer1D, TransformerLM, create_model
from foveal.training import OptimizerConfig
from foveal.training.moments import from_numbers, read_groups, read_moments, states_from
from foveal.training.optimizers import make_optimizers
from foveal.training.sharding import Sharded, blocks, copied, whole_parameters

SMALL = {"dim": 8, "depth": 2, "heads": 1, "dim_head": 8}


def language(**options):
    return TransformerLM(num_tokens=11, pattern=P.SlidingWindow(4), **SMALL, **options)


def drawing(**options):
    return DALLE(
        num_text_tokens=9, text_seq_len=3, num_image_tokens=7, image_grid=2, **SMALL, **options
    )


class Foreign(nn.Module):
    """Lists in lists, a member without a forward, and one without modules."""

    def __init__(self):
        super().__init__()
        self.pairs = nn.ModuleList(
            nn.ModuleList([nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2)]) for _ in range(2)
        )
        self.bags = nn.ModuleList([nn.Module()])
        self.bags[0].inner = nn.Linear(2, 2)
        self.net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize(
    ("make", "kinds"),
    [
        (language, ["Block"] * 2),
        (drawing, ["SelfAttention"] * 2 + ["FeedForward"] * 2),
        (lambda: drawing(shared_ff_ids=(0, 0)), ["SelfAttention"] * 2 + ["FeedForward"]),
        (lambda: drawing(reversible=True), []),
        (lambda: HTransformer1D(num_tokens=11, block_size=4, reversible=True, **SMALL), []),
        (lambda: HTransformer1D(num_tokens=11, block_size=4, **SMALL), ["ResidualBlock"] * 2),
        (lambda: create_model("halonet_h0", depths=(1, 2, 1, 1)), ["HaloBlock"] * 5),
        (lambda: create_model("sepvit_lite"), ["SepStage"] * 4),
        (Foreign, ["Sequential"] * 3),
        (lambda: nn.Linear(2, 2), []),
    ],
)
def test_blocks_are_the_outermost_members_that_run(make, kinds):
    """Not what is only a list, has no forward, is a single layer, or is taken apart."""
    with torch.device("meta"):
        model = make()
    assert [type(block).__name__ for block in blocks(model)] == kinds


def test_what_blocks_share_and_single_numbers_stay_whole():
    """A table of biases that all blocks read; a number; but nothing that one block reads twice."""
    model = language(positions="t5", tie_embeddings=True)
    model.number = nn.Parameter(torch.tensor(1.0))
    names = {id(p): name for name, p in model.named_parameters()}
    kept = [names[id(p)] for p in whole_parameters(model, blocks(model))]
    assert kept[0] == "number"
    assert len(kept) == 2
    assert kept[1].startswith("transformer.layers.0.attn.")


def test_compiling_is_refused_in_words():
    """Rather than a training that is not compiled."""
    with pytest.raises(ValueError, match=r"training\.compile .* parallel\.shard"):
        Sharded(nn.Linear(2, 2), lambda model: [], None, compile=True)


def test_a_form_has_what_the_model_has_but_its_weights():
    """Tied parameters stay one; buffers are copies; what is frozen stays frozen."""
    model = language(tie_embeddings=True)
    model.register_buffer("table", torch.arange(3.0), persistent=False)
    model.transformer.norm.weight.requires_grad_(False)
    model.sharing = object()  # of processes that share sequences
    form = copied(model, torch.device("meta"))
    model.sharing = None
    assert form.sharing is None
    assert all(p.is_meta for p in form.parameters())
    assert torch.equal(form.table, model.table)
    assert form.table is not model.table
    again = copied(form, torch.device("cpu"))
    again.load_state_dict(model.state_dict())
    assert not again.transformer.norm.weight.requires_grad
    tokens = torch.arange(6)[None]
    assert torch.equal(again.eval()(tokens), model.eval()(tokens))
    assert len(list(again.parameters())) == len(list(model.parameters()))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_moments_by_name_go_to_optimizers_of_other_groups(name):
    """Whatever the groups and their order; settings and every moment arrive."""

    def stepped(model, config):
        made = make_optimizers(model, config, torch.device("cpu"))
        model(torch.arange(6)[None]).square().mean().backward()
        for optimizer in made:
            optimizer.step()
        return made

    model, other = language(), language()
    config = OptimizerConfig(name=name, learning_rate=3e-3, weight_decay=0.25)
    first = stepped(model, config)
    names = {id(p): key for key, p in model.named_parameters()}
    order = [[names[id(p)] for g in one.param_groups for p in g["params"]] for one in first]
    moments, groups = from_numbers([one.state_dict() for one in first], order)
    assert [g["params"] for g in groups] == [g["params"] for g in read_groups(model, first)]
    own = [torch.optim.AdamW([p], lr=1.0) for p in other.parameters()]
    if name == "muon":
        own = make_optimizers(other, OptimizerConfig(name=name), torch.device("cpu"))
    states = states_from(other, own, moments, groups)
    for optimizer, state in zip(own, states, strict=True):
        optimizer.load_state_dict(state)
    found = read_moments(other, own)
    for key, kept in read_moments(model, first).items():
        assert kept.keys() == found[key].keys()
        assert all(torch.equal(kept[kind], found[key][kind]) for kind in kept)
    assert {group["lr"] for one in own for group in one.param_groups} == {3e-3}
    with pytest.raises(KeyError):
        states_from(other, own, moments, groups[1:])
