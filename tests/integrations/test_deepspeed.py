"""DeepSpeed's sparse attention on our layouts: beside DeepSpeed, and beside plain formulas."""

import copy
import inspect
import random
import types

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import foveal.integrations.deepspeed as ours
from foveal.testing import assert_close

KINDS = ("Dense", "Fixed", "Variable", "BigBird", "BSLongformer", "LocalSlidingWindow")
CONFIGS = {
    "dense": lambda: ours.DenseSparsityConfig(2, 4),
    "fixed": lambda: ours.FixedSparsityConfig(
        2, 4, different_layout_per_head=True, num_local_blocks=2, num_different_global_patterns=2
    ),
    "variable": lambda: ours.VariableSparsityConfig(
        2, 4, True, num_random_blocks=1, local_window_blocks=[1, 2], attention="unidirectional"
    ),
    "bigbird": lambda: ours.BigBirdSparsityConfig(2, 4, True),
    "longformer": lambda: ours.BSLongformerSparsityConfig(2, 4, global_block_indices=[1]),
    "sliding": lambda: ours.LocalSlidingWindowSparsityConfig(2, 4),
}
SHAPE = (2, 2, 20, 6)


@pytest.fixture(autouse=True)
def seeded():
    """Layouts may be random, by Python's own generator."""
    state = random.getstate()
    random.seed(0)
    torch.manual_seed(0)
    yield
    random.setstate(state)


def dense(query, key, value, layout, block, bias=0.0):
    """A softmax over all tokens, of which a layout (heads, blocks, blocks) forbids some."""
    on = layout.repeat_interleave(block, 1).repeat_interleave(block, 2).bool()
    length = query.shape[2]
    logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + bias
    logits = logits.masked_fill(~on[:, :length, :length], -torch.inf)
    dead = (logits == -torch.inf).all(-1, keepdim=True)
    return logits.masked_fill(dead, 0.0).softmax(-1) * ~dead @ value


def leaves(*shapes):
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def assert_same(found, want, inputs):
    """Outputs and gradients."""
    assert_close(found, want, rtol=1e-9)
    grad = torch.randn_like(want)
    own, oracle = (torch.autograd.grad(out, inputs, grad) for out in (found, want))
    for number, pair in enumerate(zip(own, oracle, strict=True)):
        assert_close(*pair, name=f"gradient of input {number}", rtol=1e-8)


# -- attention ----------------------------------------------------------------------------------


@pytest.mark.parametrize("modes", [("add", "mul"), ("mul", "add"), ("mul", "mul")])
@pytest.mark.parametrize("name", CONFIGS)
def test_trains_on_a_cpu(name, modes):
    """Every layout, with positions and both masks in both modes, in float64."""
    module = ours.SparseSelfAttention(CONFIGS[name](), *modes, max_seq_length=32)
    query, key, value, rpe = inputs = leaves(*(SHAPE,) * 3, (2, 2, 20, 20))
    real, allowed = torch.rand(2, 20) < 0.8, torch.rand(20, 20) < 0.7
    masks, bias = [], rpe
    for mask, mode in ((real, modes[0]), (allowed, modes[1])):
        added = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -torch.inf)
        if mode == "add":  # numbers other than none and all, too
            added = added + torch.randn(mask.shape, dtype=torch.float64)
        masks.append(added if mode == "add" else mask)
        bias = bias + (added[:, None, None] if mask is real else added)
    found = module(query, key, value, rpe, key_padding_mask=masks[0], attn_mask=masks[1])
    assert_same(found, dense(query, key, value, module.master_layout, 4, bias), inputs)


@pytest.mark.parametrize("length", [1, 4, 19, 32])
def test_lengths(length):
    """Up to max_seq_length, whole blocks or not; keys that lie the other way round."""
    module = ours.SparseSelfAttention(CONFIGS["bigbird"](), max_seq_length=32)
    query, key, value = inputs = leaves(*((2, 2, length, 6),) * 2, (2, 2, length, 5))
    want = dense(query, key, value, module.master_layout, 4)
    assert_same(module(query, key, value), want, inputs)
    turned = key.transpose(-1, -2).contiguous()
    if length != 6:
        assert_close(module(query, turned, value), want, rtol=1e-9)


@pytest.mark.parametrize("shape", [(2, 20), (2, 1, 1, 20), (2, 20, 1), (2, 1, 20)])
def test_shapes_of_padding(shape):
    """As BERT passes its mask, and as the tutorial does."""
    module = ours.SparseSelfAttention(CONFIGS["fixed"](), "mul", max_seq_length=20)
    query, key, value = torch.randn(3, *SHAPE)
    mask = (torch.rand(2, 20) < 0.7).long()
    want = module(query, key, value, key_padding_mask=mask)
    assert module(query, key, value, key_padding_mask=mask.view(shape)).equal(want)
    hidden = (1.0 - mask[:, None, None]) * -10000.0  # to add, as BERT has it
    added = ours.SparseSelfAttention(CONFIGS["fixed"](), max_seq_length=20)
    assert_close(added(query, key, value, key_padding_mask=hidden), want, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int64])
def test_the_usual_masks_cost_nothing(dtype):
    """A triangle is the causal pattern, also after it was written to; ones are no mask."""
    config = ours.FixedSparsityConfig(2, 4, attention="unidirectional")
    module = ours.SparseSelfAttention(config, max_seq_length=20)
    causal = ours.SparseSelfAttention(config, max_seq_length=20, causal=True)
    query, key, value = torch.randn(3, *SHAPE)
    mask = torch.ones(20, 20).tril().to(dtype)
    for one in (mask, mask[None, None]):
        assert module(query, key, value, attn_mask=one).equal(causal(query, key, value))
    assert module(query, key, value, attn_mask=torch.ones_like(mask)).equal(
        module(query, key, value)
    )
    mask[7, 2:7] = 0
    bias = torch.zeros(20, 20).masked_fill(mask == 0, -torch.inf)
    want = dense(query, key, value, module.master_layout, 4, bias)
    assert_close(module(query, key, value, attn_mask=mask), want, rtol=1e-5)


def test_a_layout_speaks_of_blocks():
    """As in DeepSpeed, tokens of one block read each other, unless they are told not to."""
    config = ours.LocalSlidingWindowSparsityConfig(2, 4)
    module = ours.SparseSelfAttention(config, max_seq_length=20)
    query, key, value = torch.randn(3, *SHAPE)
    other = value.clone()
    other[:, :, 3] += 1.0
    assert not module(query, key, value)[:, :, :3].equal(module(query, key, other)[:, :, :3])
    causal = ours.SparseSelfAttention(config, max_seq_length=20, causal=True)
    assert causal(query, key, value)[:, :, :3].equal(causal(query, key, other)[:, :, :3])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """Near to float32, and an empty batch."""
    module = ours.SparseSelfAttention(CONFIGS["bigbird"](), max_seq_length=20)
    query, key, value = torch.randn(3, *SHAPE).to(dtype)
    wide = module(query.float(), key.float(), value.float())
    found = module(query, key, value, key_padding_mask=torch.zeros(2, 20))
    assert found.dtype == dtype
    assert_close(found.float(), wide, rtol=2e-2)
    assert module(query[:0], key[:0], value[:0]).shape == (0, *SHAPE[1:])


# -- the layout as a buffer ---------------------------------------------------------------------


def test_the_layout_is_loaded_and_follows():
    """A random layout is that of the checkpoint; what is written to the buffer counts."""
    first, second = (
        ours.SparseSelfAttention(CONFIGS["bigbird"](), max_seq_length=64) for _ in range(2)
    )
    assert not first.master_layout.equal(second.master_layout)
    assert first.master_layout.dtype == torch.int64
    query, key, value = torch.randn(3, 1, 2, 64, 6)
    assert not first(query, key, value).equal(second(query, key, value))
    second.load_state_dict(first.state_dict())
    assert list(first.state_dict()) == ["master_layout"]
    copied = copy.deepcopy(second)
    for module in (second, copied, second.to(torch.float64).to(torch.float32)):
        assert module(query, key, value).equal(first(query, key, value))
    second.master_layout.fill_(1)
    want = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    assert_close(second(query, key, value), want, rtol=1e-5)
    assert copied(query, key, value).equal(first(query, key, value))


def test_the_layout_follows_rank_0(tmp_path):
    """As in DeepSpeed, processes that drew other layouts share the first one's; here of one."""
    module = ours.SparseSelfAttention(CONFIGS["bigbird"](), max_seq_length=64)
    query, key, value = torch.randn(3, 1, 2, 64, 6)
    want = module(query, key, value)
    distributed = torch.distributed
    if not distributed.is_available() or distributed.is_initialized():
        pytest.skip("needs torch.distributed, and no group yet")
    distributed.init_process_group("gloo", f"file://{tmp_path}/rank", rank=0, world_size=1)
    try:
        assert module(query, key, value).equal(want)
        assert module._synchronized
    finally:
        distributed.destroy_process_group()


def test_a_layout_made_in_inference_mode_follows_as_well():
    """Such a tensor counts no changes; loading is one all the same."""
    with torch.inference_mode():
        module = ours.SparseSelfAttention(CONFIGS["bigbird"](), max_seq_length=64)
        other = ours.SparseSelfAttention(CONFIGS["bigbird"](), max_seq_length=64)
        query, key, value = torch.randn(3, 1, 2, 64, 6)
        triangle = torch.ones(64, 64).tril()
        want = module(query, key, value, attn_mask=triangle)
        other.load_state_dict(module.state_dict())
        assert other(query, key, value, attn_mask=triangle).equal(want)


@pytest.mark.parametrize("where", ["made on meta", "moved to meta", "fake", "causal on meta"])
def test_without_values(where):
    """On meta and with fake tensors the layout is what it was made as."""
    config = types.SimpleNamespace(hidden_size=12, num_attention_heads=2)
    mode = FakeTensorMode(allow_non_fake_inputs=True) if where == "fake" else torch.device("meta")
    with torch.device("cpu") if where == "moved to meta" else mode:
        module = ours.BertSparseSelfAttention(config, CONFIGS["bigbird"]())
    with mode:
        module = module if where == "fake" else module.to("meta")
        hidden = torch.randn(2, 20, 12, requires_grad=True)
        module.sparse_self_attention.causal = where.startswith("causal")
        out = module(hidden, torch.zeros(2, 20))
        out.sum().backward()
        assert out.shape == hidden.grad.shape == hidden.shape


def test_other_configs():
    """An object that has make_layout and block is enough, DeepSpeed's own for instance."""
    layout = torch.eye(5, dtype=torch.int64).expand(2, -1, -1)
    config = types.SimpleNamespace(block=4, make_layout=lambda length: layout[:, : length // 4])
    module = ours.SparseSelfAttention(config, max_seq_length=20)
    query, key, value = torch.randn(3, *SHAPE)
    assert_close(module(query, key, value), dense(query, key, value, layout, 4), rtol=1e-5)

    class Ends(ours.SparsityConfig):
        def make_layout(self, seq_len):
            grid = self.setup_layout(seq_len)
            grid[0, :, 0] = 1
            return self.check_and_propagate_first_head_layout(grid)

    module = ours.SparseSelfAttention(Ends(2, block=4), max_seq_length=20)
    want = dense(query, key, value, module.master_layout, 4)
    assert_close(module(query, key, value), want, rtol=1e-5)


def test_random_layouts_come_from_python():
    """random.seed decides, and the generator moves on as it does with DeepSpeed."""
    config = ours.VariableSparsityConfig(
        2, 4, True, num_random_blocks=2, local_window_blocks=[1], global_block_indices=[]
    )
    random.seed(7)
    layout = config.make_layout(9 * 4)
    state = random.getstate()
    random.seed(7)
    expected = torch.eye(9, dtype=torch.int64).repeat(2, 1, 1)
    for grid in expected:
        for row in range(9):
            grid[row, random.sample(range(9), 2)] = 1
    assert layout.equal(expected)
    assert random.getstate() == state
    assert not config.make_layout(9 * 4).equal(layout)


def drawn(number):
    """(class, options, blocks) of a layout, from what both packages accept."""
    draw = random.Random(number)
    kind, per_head = draw.choice(KINDS), draw.random() < 0.5
    options = {"num_heads": draw.randint(1, 4), "block": draw.choice((4, 16))}
    attention = {"attention": draw.choice(("unidirectional", "bidirectional"))}
    starts = sorted(draw.sample(range(24), draw.randint(0, 3)))
    ends = [one + draw.randint(1, 4) for one in starts] if draw.random() < 0.5 else None
    spans = {"global_block_indices": starts, "global_block_end_indices": ends}
    shown, window = draw.randint(1, 3), {"num_sliding_window_blocks": draw.randint(1, 6)}
    horizontal = draw.random() < 0.4 and attention["attention"] == "bidirectional"
    rows = {"horizontal_global_attention": horizontal}
    patterns = draw.randint(1, 2) if per_head else 1
    if kind != "LocalSlidingWindow":
        options["different_layout_per_head"] = per_head
    options |= {
        "Dense": {},
        "Fixed": attention
        | rows
        | {
            "num_local_blocks": 2 * shown,
            "num_global_blocks": shown,
            "num_different_global_patterns": patterns,
        },
        "Variable": attention
        | rows
        | spans
        | {"num_random_blocks": draw.randint(0, 3), "local_window_blocks": [1, 3][:patterns]},
        "BigBird": attention | window | {"num_random_blocks": draw.randint(0, 1)},
        "BSLongformer": attention | window | spans,
        "LocalSlidingWindow": attention | window,
    }[kind]
    # below its window DeepSpeed refuses, but for Fixed, which counts from the end
    return f"{kind}SparsityConfig", options, draw.randint(1 if kind == "Fixed" else 6, 20)


def test_layouts_of_deepspeed():
    """Bit for bit, and as many numbers drawn, where DeepSpeed is installed."""
    theirs = pytest.importorskip(
        "deepspeed.ops.sparse_attention.sparsity_config",
        reason="needs deepspeed (pip install deepspeed)",
    )
    for number in range(300):
        kind, options, blocks = drawn(number)
        found = []
        for module in (theirs, ours):
            random.seed(number)
            layout = getattr(module, kind)(**options).make_layout(blocks * options["block"])
            found.append((layout, random.random()))
        assert found[0][0].equal(found[1][0]), (kind, options, blocks)
        assert found[0][1] == found[1][1]
        assert [p.name for p in inspect.signature(getattr(theirs, kind)).parameters.values()] == [
            p.name for p in inspect.signature(getattr(ours, kind)).parameters.values()
        ]


def test_fewer_blocks_than_global_ones():
    """Fixed counts them from the end then, as DeepSpeed does, worked out by hand."""
    config = ours.FixedSparsityConfig(
        1, 4, num_local_blocks=6, num_global_blocks=3, attention="unidirectional"
    )
    assert config.make_layout(8)[0].tolist() == [[1, 0], [1, 1]]


# -- BERT ---------------------------------------------------------------------------------------


def test_bert_attention():
    """Its projections by BERT's names, and attention under the layout."""
    config = types.SimpleNamespace(hidden_size=12, num_attention_heads=2)
    module = ours.BertSparseSelfAttention(config, CONFIGS["fixed"](), max_seq_length=20)
    assert {name.partition(".")[0] for name in module.state_dict()} == {
        "query",
        "key",
        "value",
        "sparse_self_attention",
    }
    x = torch.randn(2, 20, 12)
    mask = torch.zeros(2, 1, 1, 20)
    mask[1, ..., 15:] = -10000.0
    q, k, v = (
        part(x).view(2, 20, 2, 6).transpose(1, 2)
        for part in (module.query, module.key, module.value)
    )
    want = dense(q, k, v, module.sparse_self_attention.master_layout, 4, mask)
    assert_close(module(x, mask), want.transpose(1, 2).flatten(2), rtol=1e-5)


@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
def test_bert_of_transformers(kind):
    """With a dense layout it is what it was, padded and longer than before; it trains."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=30,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=10 if kind == "Bert" else 12,
        attn_implementation="sdpa",
    )
    model = getattr(transformers, f"{kind}ForMaskedLM")(config).eval()
    utils = ours.SparseAttentionUtils
    before = model.base_model.embeddings.position_embeddings.weight.detach()
    assert utils.extend_position_embedding(model, 23) is model
    rows = model.base_model.embeddings.position_embeddings.weight
    first = 0 if kind == "Bert" else 2
    assert rows.shape == (23 + first, 12)
    assert rows[: 10 + first].equal(before)
    assert rows[10 + first : 20 + first].equal(before[first:])
    tokens = torch.randint(3, 30, (2, 22))
    mask = torch.ones_like(tokens)
    mask[1, 17:] = 0
    want = model(tokens, attention_mask=mask).logits
    layout = ours.DenseSparsityConfig(2, block=4)
    utils.replace_model_self_attention_with_sparse_self_attention(model, 24, layout)
    found = model(tokens, attention_mask=mask).logits
    assert_close(found[mask.bool()], want[mask.bool()], rtol=1e-4)
    found[mask.bool()].square().mean().backward()
    assert all(
        layer.attention.self.query.weight.grad.any() for layer in model.base_model.encoder.layer
    )


def test_padding_to_blocks():
    """All five inputs, and back."""
    utils = ours.SparseAttentionUtils
    ids, types_ = torch.randint(5, (2, 10)), torch.ones(2, 10, dtype=torch.long)
    table = torch.nn.Embedding(7, 3)
    count, *padded = utils.pad_to_block_size(4, ids, types_, types_, ids, table(ids), 6, table)
    assert count == 2
    assert [x.shape[1] for x in padded] == [12] * 5
    assert padded[0][:, 10:].eq(6).all()
    assert padded[1][:, 10:].eq(0).all()
    assert padded[4][:, 10:].equal(table(torch.full((2, 2), 6)))
    assert utils.unpad_sequence_output(count, padded[4]).equal(table(ids))
    count, *same = utils.pad_to_block_size(5, ids, None, None, None, None, 6, None)
    assert count == 0
    assert utils.unpad_sequence_output(0, same[0]).equal(ids)
    assert same[0] is ids
    assert same[1:] == [None] * 4
    tokenizer = types.SimpleNamespace(model_max_length=5, init_kwargs={})
    assert utils.update_tokenizer_model_max_length(tokenizer, 9).model_max_length == 9


# -- the door -----------------------------------------------------------------------------------

GOOD = ours.DenseSparsityConfig(2, 4)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ours.SparseSelfAttention(GOOD, "ad"), "did you mean 'add'"),
        (lambda: ours.SparseSelfAttention(GOOD, max_seq_length=30), "multiple of block=4"),
        (lambda: ours.FixedSparsityConfig(2, attention="both"), "attention must be one of"),
        (lambda: ours.FixedSparsityConfig(2, num_different_global_patterns=2), "per_head=True"),
        (lambda: ours.FixedSparsityConfig(2, num_global_blocks=3), "multiple of"),
        (lambda: ours.VariableSparsityConfig(2, global_block_end_indices=[0]), "behind its start"),
        (lambda: ours.BSLongformerSparsityConfig(2, num_sliding_window_blocks=0), "positive"),
        (lambda: ours.BigBirdSparsityConfig(0), "num_heads must be a positive int"),
        (lambda: ours.SparseAttentionUtils.extend_position_embedding(object(), 9), "a BERT or"),
    ],
)
def test_what_cannot_be_made(make, words):
    """One line that names the argument."""
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_what_is_no_config():
    """An object without a layout, and the base class, which has none."""
    with pytest.raises(TypeError, match="make_layout"):
        ours.SparseSelfAttention("fixed")
    with pytest.raises(NotImplementedError, match="FixedSparsityConfig"):
        ours.SparseSelfAttention(ours.SparsityConfig(2))


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        ((2, 3, 20, 6), {}, "the 2 heads"),
        ((2, 2, 40, 6), {}, "max_seq_length = 32"),
        ((2, 20, 12), {}, r"must be \(batch, heads, length, head_dim\)"),
        (SHAPE, {"key_padding_mask": torch.ones(2, 19)}, r"= \(2, 20\), got \(2, 19\)"),
        (SHAPE, {"key_padding_mask": torch.ones(20, 2)}, r"= \(2, 20\), got \(20, 2\)"),
        (SHAPE, {"key_padding_mask": torch.ones(4, 10)}, r"= \(2, 20\), got \(4, 10\)"),
        (SHAPE, {"key_padding_mask": torch.ones(2, 4, 5)}, r"= \(2, 20\), got \(2, 4, 5\)"),
        (SHAPE, {"key_padding_mask": torch.ones(1, 40)}, r"= \(2, 20\), got \(1, 40\)"),
        (SHAPE, {"key_padding_mask": torch.ones(2, 20).bool()}, "key_padding_mask_mode='mul'"),
        (SHAPE, {"attn_mask": torch.ones(20, 19)}, r"= \(20, 20\), got \(20, 19\)"),
    ],
)
def test_refusals(shape, options, words):
    """One line that names the argument, what it was and what it should be."""
    module = ours.SparseSelfAttention(GOOD, max_seq_length=32)
    with pytest.raises(ValueError, match=words) as caught:
        module(*torch.randn(3, *shape), **options)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="self-attention"):
        module(torch.randn(SHAPE), *torch.randn(2, 2, 2, 19, 6))


def test_compiles_whole():
    """One graph, with padding."""
    module = ours.SparseSelfAttention(CONFIGS["bigbird"](), "mul", max_seq_length=20)
    query, key, value = torch.randn(3, *SHAPE)
    mask = torch.rand(2, 20) < 0.8
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    found = compiled(query, key, value, key_padding_mask=mask)
    assert_close(found, module(query, key, value, key_padding_mask=mask), rtol=1e-5)
