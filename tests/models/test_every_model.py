"""What holds for a model of every family: wrapped layers, devices, modes, copies, files."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from zoo import CASES, Case

from foveal.models import cost, load_model
from foveal.models.registry import _families

each = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())

TINY_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding)


def projections(model: nn.Module) -> dict[str, nn.Module]:
    """Layers with a weight that is trained, by name; a frozen VAE is not asked."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, TINY_LAYERS) and not name.startswith("vae.")
    }


def run(case: Case, model: nn.Module, *inputs: Tensor) -> Tensor:
    """The same random numbers for every run."""
    torch.manual_seed(7)
    return case(model, *inputs)


def test_every_family_is_here():
    """A family that is registered is tested by this module."""
    found = {case.make().family for case in CASES.values()}
    assert found == set(_families)


@each
def test_every_projection_is_called(case):
    """A hook on any projection runs: no weight is multiplied behind its module's back."""
    model, calls = case.make(), set()
    layers = projections(model)
    for name, layer in layers.items():
        layer.register_forward_hook(lambda *_, name=name: calls.add(name))
    run(case, model)
    assert layers.keys() == calls


@each
def test_one_wrapped_projection_changes_nothing_else(case):
    """With a hook on one layer alone, the others compute what they did before."""
    model = case.make().eval()
    before = run(case, model)
    for name, layer in projections(model).items():
        with_hook = layer.register_forward_hook(lambda module, args, out: out + 0)
        assert torch.allclose(run(case, model), before, atol=1e-5), name
        with_hook.remove()


@each
def test_every_parameter_learns(case):
    """At odd sizes every parameter that can get a gradient gets a finite one."""
    model = case.make()
    run(case, model).square().mean().backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@each
def test_inference_mode_and_back(case):
    """After a pass in inference mode the model trains; its weights are normal and in place."""
    model = case.make().eval()
    where = {name: p.data_ptr() for name, p in model.named_parameters()}
    with torch.inference_mode():
        inferred = run(case, model)
    assert not any(t.is_inference() for t in (*model.parameters(), *model.buffers()))
    assert where == {name: p.data_ptr() for name, p in model.named_parameters()}
    out = run(case, model)
    assert torch.allclose(out, inferred, atol=1e-6)
    out.square().mean().backward()


@each
def test_copies_and_pickles(case):
    """A used model can be copied and pickled; the copies compute the same and share nothing."""
    model = case.make().eval()
    before = run(case, model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(run(case, twin), before)
        with torch.no_grad():
            for p in twin.parameters():
                p.zero_()
    assert torch.equal(run(case, model), before)


@each
def test_meta_and_fake_tensors(case):
    """Shapes are known without numbers, of a model that was made without as well; one that was
    tried so still computes afterwards."""
    model = case.make().eval()
    shape = run(case, model).shape
    twin = copy.deepcopy(model).to("meta")
    meta = case(twin, *(x.to("meta") for x in case.inputs()))
    assert (meta.shape, meta.device.type) == (shape, "meta")
    fresh = case.make().eval()
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert case(fresh).shape == shape
        case.make()
    assert torch.equal(run(case, fresh), run(case, model))


class Called(nn.Module):
    """A case as a module, which torch.jit.trace wants."""

    def __init__(self, case: Case):
        super().__init__()
        self.case, self.model = case, case.make().eval()

    def forward(self, *inputs):
        return self.case(self.model, *inputs)


@pytest.mark.filterwarnings("ignore")  # that trace is old, and that checks are no part of it
@each
@torch.no_grad()
def test_traced(case, monkeypatch):
    """torch.jit.trace records what depends on the inputs: other values give what they should.

    The record is run as it is: what torch.jit would make of it is torch's, and takes longer. So
    does the look through all variables for the name of each value, which nobody reads.
    """
    nameless = lambda frames_up=1: lambda value: ""  # noqa: E731
    monkeypatch.setattr(torch.jit._trace, "_create_interpreter_name_lookup_fn", nameless)
    module, inputs = Called(case), case.inputs()
    traced = torch.jit.trace(module, inputs, check_trace=False)
    for given in (inputs, [x.flip(0) for x in inputs]):
        torch.manual_seed(7)
        expected = module(*given)
        torch.manual_seed(7)
        with torch.jit.optimized_execution(False):
            out = traced(*given)
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)


@each
def test_other_defaults_of_the_process(case):
    """What a model computes does not depend on the process's default dtype and device."""
    model, fresh = case.make().eval(), case.make().eval()
    inputs = case.inputs()
    before = run(case, model, *inputs)
    torch.set_default_dtype(torch.float64)
    try:
        after = run(case, fresh, *inputs)
    finally:
        torch.set_default_dtype(torch.float32)
    assert after.dtype == before.dtype
    assert torch.allclose(after, before, atol=1e-5)


@each
def test_files(case, tmp_path):
    """A model comes back from its files in its dtype or another, with its outputs."""
    model = case.make().eval()
    before = run(case, model)
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert (again.device.type, again.dtype) == (model.device.type, model.dtype)
    assert torch.equal(run(case, again), before)
    half = load_model(tmp_path, "cpu", dtype="bfloat16")
    assert half.dtype is torch.bfloat16
    torch.testing.assert_close(half.state_dict(), again.bfloat16().state_dict(), rtol=0, atol=0)
    shapes = type(model).from_pretrained(tmp_path, "meta", dtype=torch.float16)
    assert {(x.device.type, x.dtype) for x in shapes.parameters()} == {("meta", torch.float16)}
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    stream.seek(0)
    twin = case.build().eval()
    twin.load_state_dict(torch.load(stream, weights_only=True))
    assert torch.equal(run(case, twin), before)


@each
def test_cost(case):
    """Every model knows its cost, with and without inputs, and measuring leaves no trace."""
    model = case.make()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    state = torch.get_rng_state()
    inputs = case.inputs()
    one, two = (cost(model, *(x[:count] for x in inputs)) for count in (1, 2))
    whole = cost(model)
    assert one.parameters == whole.parameters == sum(p.numel() for p in model.parameters())
    assert min(one.flops, whole.flops) > 0
    assert two.length == 2 * one.length
    assert one.flops < two.flops <= 2 * one.flops  # positions are projected once for all
    assert (one.cache_bytes_per_token > 0) == getattr(model, "is_causal", False)
    after = model.state_dict()
    assert model.training
    assert all(torch.equal(p, after[name]) for name, p in before.items())
    torch.set_rng_state(state)


@each
def test_prefill_and_steps(case):
    """A causal model gives the same logits token by token as at once, from several prompts."""
    model = case.make().double().eval()
    if not getattr(model, "is_causal", False):
        pytest.skip("it reads the future")
    *given, tokens = case.inputs()
    if tokens.is_floating_point():
        tokens = model.vae.get_codebook_indices(tokens.double())
    whole, known = model(*given, tokens), 1
    if hasattr(model, "num_image_tokens"):  # the text ends with the prediction of the first one
        whole, known = whole[:, model.text_seq_len :, model.num_text_tokens :], 0
    for split in (1, 3, tokens.shape[1] - 1):
        logits, cache = model.prefill(*given, tokens[:, :split])
        rows = [logits]
        for token in tokens[:, split:-1].unbind(1):
            logits, cache = model.step(token, cache)
            rows.append(logits)
        expected = whole[:, split - known :][:, : len(rows)]
        torch.testing.assert_close(torch.stack(rows, 1), expected, rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@each
def test_tensors_of_other_kinds(case):
    """Nested and sparse inputs, of which most operations of torch know nothing, are named."""
    model, inputs = case.make(), case.inputs()
    for i, x in enumerate(inputs):
        for other, kind in (
            (torch.nested.nested_tensor(list(x)), "nested"),
            (x.to_sparse(), "coo"),
        ):
            given = [*inputs[:i], other, *inputs[i + 1 :]]
            with pytest.raises(ValueError, match=f"must be a dense tensor, got .*{kind}"):
                case(model, *given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each
def test_half_precision(case, dtype):
    """In half precision and under autocast a model says nearly what it says in float32."""
    model = case.make().eval()
    before = run(case, model).detach()
    tolerance = 0.05 * float(before.abs().max()) + 0.05
    with torch.autocast("cpu", dtype):
        mixed = run(case, model)
    assert (mixed.float() - before).abs().max() <= tolerance
    mixed.float().square().mean().backward()
    half = copy.deepcopy(model).to(dtype)
    small = (x.to(dtype) if x.is_floating_point() else x for x in case.inputs())
    assert (run(case, half, *small).float() - before).abs().max() <= tolerance


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32]
)
def test_tokens_of_any_int_type(dtype):
    """Tokens may be of any int type, in every pass; those that are no ints are refused."""
    for name, case in CASES.items():
        inputs = case.inputs()
        if inputs[-1].is_floating_point():  # pictures
            continue
        model = case.make().eval()
        small = [x if x.is_floating_point() else x.to(dtype) for x in inputs]
        assert torch.equal(run(case, model, *small), run(case, model, *inputs)), name
        if getattr(model, "is_causal", False) and hasattr(model, "prefill"):
            first = small if len(small) == 1 else (small[0], small[1][:, :4])
            _, cache = model.prefill(*first)
            logits, _ = model.step(first[-1][:, 0], cache)
            assert logits.isfinite().all(), name
        with pytest.raises(ValueError, match="int type"):
            case(model, inputs[0] > 0, *inputs[1:])


NAN = [name for name, case in CASES.items() if case.takes_mask and "package" not in name]


@pytest.mark.parametrize("name", NAN)
def test_padding_may_hold_anything(name):
    """NaN in tokens that are not real reaches no output and no gradient of those that are."""
    case = CASES[name]
    model = case.make().eval()
    mask = torch.ones(2, 13, dtype=torch.bool)
    mask[0, 9:] = mask[1, 4:] = False
    (tokens,) = case.inputs()
    grads = []
    for poison in (0.0, float("nan"), float("inf")):
        model.zero_grad()

        def spoil(module, args, out, poison=poison):
            return torch.where(mask[..., None], out, poison) if out.ndim == 3 else out

        hook = model.token_emb.register_forward_hook(spoil)
        out = model(tokens, mask)
        hook.remove()
        real = out[mask] if out.ndim == 3 else out
        assert real.isfinite().all()
        real.square().mean().backward()
        grads.append([real.detach(), *(p.grad.clone() for p in model.parameters())])
    for other in grads[1:]:
        for one, two in zip(grads[0], other, strict=True):
            assert torch.allclose(one, two, atol=1e-6)


def test_pictures_as_bytes():
    """Bytes are pictures from 0 to 1 where a model says what it expects, and refused elsewhere."""
    for name in ("discrete vae", "vqvae", "clip"):
        case = CASES[name]
        model = case.make().eval()
        *text, images = case.inputs()
        small = (images * 255).byte()
        scaled = run(case, model, *text, small.float() / 255)
        assert torch.equal(run(case, model, *text, small), scaled), name
        with pytest.raises(ValueError, match="bytes"):
            case(model, *text, small.int())
    for name in ("halonet", "sepvit", "sepvit compact"):
        with pytest.raises(ValueError, match="floating-point images"):
            CASES[name](CASES[name].make(), torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
