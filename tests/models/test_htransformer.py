"""H-Transformer-1D: language model, encoder, classifier, encoder and decoder."""

import pytest
import torch

from foveal import testing
from foveal.layers import HAttention1D
from foveal.models import (
    HTransformer1D,
    HTransformerClassifier,
    HTransformerSeq2Seq,
    Model,
    cost,
    create_model,
    list_models,
)

TOKENS = 20
SIZES = {"num_tokens": TOKENS, "dim": 12, "heads": 2, "dim_head": 4, "max_seq_len": 128}
LM = {**SIZES, "depth": 2, "block_size": 4}
SEQ2SEQ = {
    **SIZES,
    "enc_depth": 1,
    "dec_depth": 2,
    "enc_block_size": 4,
    "dec_block_size": 2,
    "num_target_tokens": 9,
}
VARIANTS = [
    {},
    {"queries": "coarse"},
    {"shift_tokens": True},
    {"shift_tokens": (0, 3, 1), "reversible": True},
    {"reversible": True, "relative_bias": True, "rotary": False},
    {"neighbors": "sibling", "kv_heads": 1, "relative_bias": "shared", "tie_embeddings": True},
    {"attention": "full"},
]


def make(cls=HTransformer1D, **options):
    torch.manual_seed(0)
    sizes = SEQ2SEQ if cls is HTransformerSeq2Seq else LM
    return cls(**sizes, **options)


def tokens(*shape, below=TOKENS, seed=0):
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(seed))


# -- what is read -------------------------------------------------------------------------------


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("causal", [True, False])
def test_every_pair_and_no_other(options, causal):
    """A decoder reads all of the past and nothing else; an encoder reads everything."""
    if not causal and options.get("shift_tokens") == (0, 3, 1):
        options = {**options, "shift_tokens": True}
    model = make(causal=causal, **options).double()
    found = testing.reach(lambda x: model._logits(model.transformer(x)), 25, dim=12)
    all_pairs = torch.ones(25, 25, dtype=torch.bool)
    assert torch.equal(found, all_pairs.tril() if causal else all_pairs)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_padding_changes_nothing(options):
    """What is not real on the right leaves the real rows as they are, in every form."""
    for causal in (True, False):
        if not causal and options.get("shift_tokens") == (0, 3, 1):
            continue
        model = make(causal=causal, **options).double().eval()
        row = tokens(1, 30)
        mask = torch.arange(37)[None] < 30
        one, two = (model(torch.cat((row, tokens(1, 7, seed=s)), 1), mask)[:, :30] for s in (1, 2))
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)
        torch.testing.assert_close(one, model(row), rtol=0, atol=1e-12)


def test_shifts_fit_the_direction():
    """shift_tokens=True looks back only where the model is causal, and both ways elsewhere."""
    assert make(causal=True, shift_tokens=True).settings.shifts == (0, 1)
    assert make(causal=False, shift_tokens=True).settings.shifts == (-1, 0, 1)
    with pytest.raises(ValueError, match="shift_tokens"):
        make(causal=True, shift_tokens=(-1, 0, 1))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 9, 100])
def test_any_length_and_prefixes(n):
    """A causal model gives a prefix the same logits, down to one token."""
    model = make(causal=True).double().eval()
    row = tokens(1, 100)
    torch.testing.assert_close(model(row[:, :n]), model(row)[:, :n], rtol=0, atol=1e-12)


# -- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_every_parameter_learns(options):
    """No dead weights in any form of the models."""
    models = [make(causal=True, **options)]
    if "tie_embeddings" not in options:
        classifier = {k: v for k, v in options.items() if k != "shift_tokens"}
        models += [
            make(HTransformerClassifier, pool=pool, **classifier) for pool in ("cls", "mean")
        ]
    for model in models:
        model(tokens(2, 70)).square().mean().backward()
        for name, p in model.named_parameters():
            assert p.grad is not None, name
            assert p.grad.any(), name


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_reversible_is_two_streams(dropout):
    """Recomputing gives the gradients of keeping everything, attention and dropout included."""
    model = make(causal=True, reversible=True, dropout=dropout, shift_tokens=True).double()
    x = torch.randn(2, 33, 12, dtype=torch.float64)

    def kept(x):
        first = second = x
        for block in model.transformer.layers:
            attend, feed = block.branches
            first = first + attend.run(second)
            second = second + feed.run(first)
        return model.transformer.norm(first + second)

    found = []
    for run in (model.transformer, kept):
        torch.manual_seed(5)
        leaf = x.clone().requires_grad_()
        out = run(leaf)
        (out * torch.arange(12)).sum().backward()
        found.append([out, leaf.grad, *(p.grad.clone() for p in model.transformer.parameters())])
        model.zero_grad()
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_activation_checkpointing():
    """Recomputed blocks give the same gradients."""
    found = []
    for enabled in (False, True):
        model = make(causal=True).double().activation_checkpointing(enabled)
        model(tokens(1, 40)).square().sum().backward()
        found.append([p.grad for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_half_precision():
    """bfloat16 autocast runs forward and backward without NaN, near float32."""
    model = make(causal=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(tokens(2, 90))
    out.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert (out.float() - model(tokens(2, 90))).abs().max() < 0.1


# -- decoding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_decoding_equals_the_forward_pass(options):
    """prefill of any prompt, then steps, give the rows of the whole pass to 1e-10."""
    model = make(causal=True, **options).double().eval()
    rows = tokens(2, 75)
    full = model(rows).detach()
    for prompt in (1, 2, 3, 8, 31, 64, 74):
        logits, cache = model.prefill(rows[:, :prompt], None if prompt % 2 else 75)
        found = [logits]
        for i in range(prompt, 75):
            logits, cache = model.step(rows[:, i], cache)
            found.append(logits)
        want = full[:, prompt - 1 :]
        torch.testing.assert_close(torch.stack(found, 1), want, rtol=0, atol=1e-10)
        assert cache.position == 75


def test_generating_rows_of_different_lengths():
    """Prompts of different lengths come out as each would alone, cached or not."""
    model = make(causal=True).double()
    prompts = [tokens(n, seed=n) for n in (9, 1, 30)]
    cached = model.generate(prompts, 20, temperature=0)
    assert torch.equal(cached, model.generate(prompts, 20, temperature=0, use_cache=False))
    for row, prompt in zip(cached, prompts, strict=True):
        alone = model.generate(prompt[None], 20, temperature=0)[0]
        assert torch.equal(row[: len(alone)], alone)


def test_cost_is_known():
    """The state grows with the logarithm of the context, the work almost with its length."""
    model = make(causal=True)
    assert cost(model).parameters == model.num_parameters
    near, far = cost(model, 64), cost(model, 1 << 16)
    assert far.cache_bytes_per_token * (1 << 16) < 8 * near.cache_bytes_per_token * 64
    assert far.flops_per_token < 6 * near.flops_per_token
    assert cost(make(HTransformerClassifier)).cache_bytes_per_token == 0
    assert cost(make(HTransformerSeq2Seq), 64).flops_per_token > 0


# -- classifier ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_classifier_leaves_padding_out(pool):
    """Padding on either side leaves the answer of the real tokens where it is."""
    model = make(HTransformerClassifier, pool=pool, num_classes=3).double().eval()
    row, mask = tokens(1, 30), torch.arange(37)[None] < 30
    one, two = (model(torch.cat((row, tokens(1, 7, seed=s)), 1), mask) for s in (1, 2))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)
    torch.testing.assert_close(one, model(row), rtol=0, atol=1e-12)
    assert one.shape == (1, 3)
    with pytest.raises(ValueError, match="pool"):
        make(HTransformerClassifier, pool="max")
    with pytest.raises(ValueError, match="causal"):
        make(HTransformerClassifier, causal=True)


# -- encoder and decoder ------------------------------------------------------------------------


def test_seq2seq_decodes_exactly():
    """Steps over a remembered source equal the forward pass, sources of two lengths."""
    model = make(HTransformerSeq2Seq, relative_bias=True).double().eval()
    source, target = tokens(2, 50), tokens(2, 60, below=9)
    mask = torch.arange(50)[None] < torch.tensor([[50], [31]])
    full = model(source, target, mask).detach()
    for prompt in (1, 7, 40):
        logits, cache = model.prefill(source, target[:, :prompt], mask, 60)
        found = [logits]
        for i in range(prompt, 60):
            logits, cache = model.step(target[:, i], cache)
            found.append(logits)
        want = full[:, prompt - 1 :]
        torch.testing.assert_close(torch.stack(found, 1), want, rtol=0, atol=1e-10)
    twin = cache.clone()
    assert twin.num_bytes == cache.num_bytes


def test_seq2seq_reads_the_source_and_its_own_past():
    """The source reaches every logit, later targets none; padding of the source is left out."""
    model = make(HTransformerSeq2Seq).double().eval()
    source, target = tokens(1, 40), tokens(1, 30, below=9)
    full = model(source, target)
    for i in (0, 11, 29):
        changed = target.clone()
        changed[0, i] = (changed[0, i] + 1) % 9
        moved = (model(source, changed) - full).abs().amax(-1)[0] > 1e-12
        assert moved[i:].all()
        assert not moved[:i].any()
    for j in (0, 20, 39):
        changed = source.clone()
        changed[0, j] = (changed[0, j] + 1) % TOKENS
        assert ((model(changed, target) - full).abs().amax(-1) > 1e-12).all()
        mask = torch.ones(1, 40, dtype=torch.bool)
        mask[0, j] = False
        kept = model(changed, target, mask) - model(source, target, mask)
        assert kept.abs().max() < 1e-12


def test_seq2seq_generates():
    """Greedy targets are the same with and without cache, and stop where they are told."""
    model = make(HTransformerSeq2Seq).double()
    source, prompt = tokens(2, 20), torch.zeros(2, 1, dtype=torch.long)
    cached = model.generate(source, prompt, 25, temperature=0)
    again = model.generate(source, prompt, 25, temperature=0, use_cache=False)
    assert torch.equal(cached, again)
    assert cached.shape == (2, 26)
    with pytest.raises(ValueError, match="tokens from 0 to 8"):
        model.generate(source, prompt + 9, 1)
    with pytest.raises(ValueError, match="source must be"):
        model(source[0], prompt)
    with pytest.raises(ValueError, match=r"token must be \(batch,\)"):
        model.step(prompt, None)


def test_seq2seq_every_parameter_learns():
    """No dead weights; checkpointing changes no gradient."""
    found = []
    for enabled in (False, True):
        model = make(HTransformerSeq2Seq, relative_bias=True).double()
        model.activation_checkpointing(enabled)
        model(tokens(2, 40), tokens(2, 45, below=9)).square().mean().backward()
        for name, p in model.named_parameters():
            assert p.grad is not None, name
            assert p.grad.any(), name
        found.append([p.grad for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


# -- names and files ----------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [HTransformer1D, HTransformerClassifier, HTransformerSeq2Seq])
def test_save_and_load(cls, tmp_path):
    """A saved model comes back equal, through its class and through the base class."""
    model = make(cls).eval()
    model.save_pretrained(tmp_path)
    again = Model.from_pretrained(tmp_path)
    assert type(again) is cls
    assert again.config == model.config
    inputs = (
        (tokens(1, 20), tokens(1, 10, below=9)) if cls is HTransformerSeq2Seq else (tokens(1, 20),)
    )
    assert torch.equal(again(*inputs), model(*inputs))


def test_named_sizes():
    """The sizes of the authors' models, and options over them."""
    assert {"htransformer_small", "htransformer_base", "htransformer_large"} <= set(list_models())
    model = create_model("htransformer_small", depth=1, num_tokens=11)
    assert isinstance(model, HTransformer1D)
    assert model.is_causal
    assert isinstance(create_model("htransformer_lra", depth=1), HTransformerClassifier)
    name = "htransformer_seq2seq_base"
    assert isinstance(create_model(name, enc_depth=1, dec_depth=1), HTransformerSeq2Seq)


def test_wrong_options_are_named():
    """Errors say which keyword, what it was, and what to use."""
    with pytest.raises(ValueError, match="pos_emb must be None"):
        make(pos_emb=1)
    with pytest.raises(ValueError, match="attention must be"):
        make(attention="dense")
    with pytest.raises(ValueError, match="neither relative_bias nor compat"):
        make(attention="full", relative_bias=True)
    with pytest.raises(ValueError, match="compat must be None"):
        make(compat="1.0")
    with pytest.raises(ValueError, match="did you mean 'block_size'"):
        make(blocksize=3)
    with pytest.raises(ValueError, match="max_seq_len=128"):
        make()(tokens(1, 129))


def test_length_is_not_baked_in():
    """Weights trained at one maximum load into a model with a longer one."""
    weights = make(causal=True).state_dict()
    longer = HTransformer1D(**{**LM, "max_seq_len": 4096}, causal=True)
    longer.load_state_dict(weights)
    assert longer(tokens(1, 300)).shape == (1, 300, TOKENS)
    assert isinstance(longer.transformer.layers[0].attn, HAttention1D)
