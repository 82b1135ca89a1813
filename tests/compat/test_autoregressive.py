"""The AutoregressiveWrappers: the packages' draws, and what the packages fail at."""

import importlib

import pytest
import torch
import torch.nn.functional as F

PACKAGES = ["h_transformer_1d", "hourglass_transformer_pytorch"]


class Echo(torch.nn.Module):
    """A net whose likeliest next token is the one after the last."""

    max_seq_len = 6

    def __init__(self, vocabulary=5):
        super().__init__()
        self.vocabulary, self.longest = vocabulary, 0
        self.weight = torch.nn.Parameter(torch.tensor(9.0))

    def forward(self, x, mask=None):
        assert mask is None or mask.shape == x.shape
        self.longest = max(self.longest, x.shape[1])
        return F.one_hot((x + 1) % self.vocabulary, self.vocabulary) * self.weight


def wrapper(package, net=None, **options):
    module = importlib.import_module(f"foveal.compat.{package}.autoregressive_wrapper")
    return module.AutoregressiveWrapper(Echo() if net is None else net, **options)


@pytest.mark.parametrize("package", PACKAGES)
def test_draws_are_the_packages(package, peer):
    """Under one seed the same tokens, past max_seq_len too, and the same loss."""
    module = f"{package}.autoregressive_wrapper"
    net = Echo(50)
    theirs, ours = peer(module).AutoregressiveWrapper(net), wrapper(package, net)
    prompt = torch.randint(1, 50, (3, 6))
    for options in ({}, {"temperature": 2.0, "filter_thres": 0.5}):
        results = []
        for one in (theirs, ours):
            torch.manual_seed(0)
            results.append(one.generate(prompt, 9, **options))
        assert torch.equal(*results)
    tokens = torch.randint(0, 50, (3, 7))
    assert torch.equal(ours(tokens), theirs(tokens))


@pytest.mark.parametrize("package", PACKAGES)
def test_the_context_slides(package):
    """A prompt as long as max_seq_len, one dimension: the net never sees more than it can."""
    one = wrapper(package).train()
    out = one.generate(torch.tensor([0, 1, 2, 3, 4, 0]), 8)
    assert out.tolist() == [1, 2, 3, 4, 0, 1, 2, 3]
    assert one.net.longest == 6
    assert one.training


@pytest.mark.parametrize("package", PACKAGES)
def test_eos_token(package):
    """A row ends with its token and padding follows; all rows ended end the loop."""
    one = wrapper(package, pad_value=7)
    out = one.generate(torch.tensor([[2], [0]]), 9, eos_token=4)
    assert out.tolist() == [[3, 4, 7, 7], [1, 2, 3, 4]]
    # a prompt that holds the token is no end
    assert one.generate(torch.tensor([[4, 2]]), 9, eos_token=4).tolist() == [[3, 4]]
    assert one.generate(torch.tensor([[2]]), 3, eos_token=9).tolist() == [[3, 4, 0]]


@pytest.mark.parametrize("package", PACKAGES)
def test_greedy_and_masks(package):
    """temperature=0 takes the likeliest; a mask of all tokens fits the loss; gradients flow."""
    one = wrapper(package, Echo(4))
    assert one.generate(torch.tensor([[0]]), 5, temperature=0).tolist() == [[1, 2, 3, 0, 1]]
    tokens = torch.randint(1, 4, (2, 6))
    loss = one(tokens, mask=torch.ones(2, 6, dtype=torch.bool))
    assert torch.equal(loss, one(tokens))
    loss.backward()
    assert one.net.weight.grad is not None


def test_which_labels_are_left_out():
    """-100 in h-transformer-1d by default, the padding in hourglass."""
    net = Echo()
    tokens = torch.tensor([[1, 2, 0, 3]])
    plain = wrapper("h_transformer_1d", net)(tokens)
    assert torch.equal(
        wrapper("h_transformer_1d", net, ignore_index=0)(tokens),
        wrapper("hourglass_transformer_pytorch", net)(tokens),
    )
    assert not torch.equal(plain, wrapper("hourglass_transformer_pytorch", net)(tokens))


def test_filter_logits_fn():
    """The function that is given cuts the logits, and gets the threshold."""
    seen = []

    def keep_first(logits, thres):
        seen.append(thres)
        return torch.full_like(logits, -torch.inf).index_fill(1, torch.tensor([0]), 0.0)

    one = wrapper("h_transformer_1d")
    out = one.generate(torch.tensor([[3]]), 4, filter_logits_fn=keep_first, filter_thres=0.3)
    assert out.tolist() == [[0, 0, 0, 0]]
    assert seen == [0.3] * 4


def test_a_net_without_a_length_is_refused():
    """The error names what is missing."""
    with pytest.raises(ValueError, match="max_seq_len"):
        wrapper("h_transformer_1d", torch.nn.Linear(2, 2))
