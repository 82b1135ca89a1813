"""torch.compile(fullgraph=True) of every model: the same outputs and gradients."""

import ctypes
import os
import shutil

import pytest
import torch
import torch._functorch.config
import torch._inductor.config
from torch._inductor import codecache

from foveal import patterns as P
from foveal.layers import (
    CausalHAttention1D,
    HaloAttention,
    HAttention1D,
    HCrossAttention1D,
    SeparableAttention,
)
from foveal.models import (
    CLIP,
    DALLE,
    VQVAE,
    DiscreteVAE,
    HaloNet,
    HourglassTransformerLM,
    HTransformer1D,
    HTransformerClassifier,
    HTransformerSeq2Seq,
    SepVisionTransformer,
    SepViT,
    TransformerLM,
)

# the compiler's own: it makes an instance of each autograd function, and loads torch.jit
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

LM = {"num_tokens": 20, "dim": 8, "heads": 2, "dim_head": 4, "max_seq_len": 64}
SEQ2SEQ = {"num_tokens": 20, "dim": 8, "heads": 2, "dim_head": 4, "num_target_tokens": 9}
DRAWING = {
    "dim": 16,
    "heads": 2,
    "dim_head": 8,
    "num_text_tokens": 50,
    "text_seq_len": 6,
    "num_image_tokens": 20,
    "image_grid": (3, 4),
}
MATCHING = {
    "dim_text": 8,
    "dim_image": 12,
    "dim_latent": 6,
    "num_text_tokens": 20,
    "text_enc_depth": 1,
    "text_seq_len": 6,
    "text_heads": 2,
    "visual_enc_depth": 1,
    "visual_heads": 2,
}
PICTURES = {"num_layers": 1, "num_tokens": 24, "codebook_dim": 12, "hidden_dim": 8}
STAGE = {"num_classes": 10, "depths": (1,), "dims": (8,), "heads": (1,)}


def tokens(*shape):
    return torch.randint(0, 20, shape, generator=torch.Generator().manual_seed(1))


def image(*sides):
    return torch.rand(2, 3, *sides, generator=torch.Generator().manual_seed(1))


def make_clip():
    return CLIP(**MATCHING, visual_image_size=8, visual_patch_size=4)


# name -> (model, its inputs)
MODELS = {
    # of the options, here and below, those that no other model has: heads of their own, GELU and
    # an output layer have the hourglasses
    "transformer": lambda: (
        TransformerLM(
            **LM,
            depth=2,
            pattern=[P.SlidingWindow(5), P.Full(causal=True)],
            tie_embeddings=True,
            activation="swiglu",
            kv_heads=1,
        ),
        [tokens(2, 21)],
    ),
    "hourglass": lambda: (
        HourglassTransformerLM(**LM, depth=(0, 1, 0), shorten_factor=3),
        [tokens(2, 21)],
    ),
    "hourglass, linear": lambda: (
        HourglassTransformerLM(
            **LM,
            depth=(0, (0, 1, 0), 0),
            shorten_factor=(2, 3),
            attn_resampling=False,
            updown_sample_type="linear",
        ),
        [tokens(2, 21)],
    ),
    "h-transformer, reversible": lambda: (
        HTransformer1D(**LM, depth=1, block_size=4, causal=True, reversible=True),
        [tokens(2, 14)],
    ),
    # 17 tokens: three levels, so that two are merged into one below; elsewhere there are two
    "h-transformer classifier": lambda: (
        HTransformerClassifier(**LM, depth=1, block_size=4, num_classes=3),
        [tokens(2, 17)],
    ),
    "h-transformer seq2seq": lambda: (
        HTransformerSeq2Seq(
            **SEQ2SEQ,
            max_seq_len=64,
            enc_depth=1,
            dec_depth=1,
            enc_block_size=4,
            dec_block_size=4,
        ),
        [tokens(2, 14), tokens(2, 9) % 9],
    ),
    "halonet": lambda: (HaloNet(**STAGE, strides=(4,)), [image(49, 70)]),
    "sepvit": lambda: (
        SepVisionTransformer(**STAGE, strides=(4,), window_sizes=((7, 14),)),
        [image(49, 70)],
    ),
    "sepvit, compact": lambda: (
        SepViT(num_classes=10, dim=8, depth=(1,), heads=(1,), dim_head=8),
        [image(49, 70)],
    ),
    "dalle": lambda: (
        DALLE(**DRAWING, depth=1, attn_types=("axial_col",)),
        [tokens(2, 6), tokens(2, 12)],
    ),
    "clip": lambda: (make_clip(), [tokens(4, 6), image(8, 8).repeat(2, 1, 1, 1)]),
    "vae": lambda: (DiscreteVAE(image_size=8, straight_through=True, **PICTURES), [image(8, 8)]),
    "vqvae": lambda: (VQVAE(image_size=8, **PICTURES), [image(8, 8)]),
}


def results(model, run, inputs):
    """[*outputs, *gradients]"""
    model.zero_grad()
    inputs = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
    torch.manual_seed(3)
    out = run(*inputs)
    out = out if isinstance(out, tuple) else (out,)
    sum(x.float().square().sum() for x in out).backward()
    learned = (*inputs, *model.parameters())
    grads = [p.grad.clone() for p in learned if p.grad is not None]
    return [*(x.detach() for x in out), *grads]


def features(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)).requires_grad_()


class SideBySide(torch.nn.Module):
    """Layers that have nothing to do with each other, in one graph."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, *inputs):
        return tuple(layer(x) for layer, x in zip(self.layers, inputs, strict=True))


class OverItself(HCrossAttention1D):
    """Cross attention whose context is another view of its queries."""

    def forward(self, x):
        return super().forward(x, x.flip(1))


def layers():
    """What inductor is given: one layer of each kind, of the same sizes where they agree.

    Side by side, since it makes one kernel of what runs over equal sizes, and the C++ compiler
    reads the headers once. What surrounds the layers is torch's own: norms, feed-forward and
    shortcuts are the stack's, and a whole VQVAE is; the towers of CLIP are a stack, and the
    compact SepViT computes attention by the same functions.
    """
    common = LM | {"dim_head": 8}
    stack = TransformerLM(**common, depth=1, pattern=P.SlidingWindow(5)).transformer
    options = {"attn_resampling": False, "updown_sample_type": "linear", "shorten_factor": 3}
    resampling = HourglassTransformerLM(**common, depth=(0, 0, 0), **options).transformer
    small = {"heads": 2, "dim_head": 8, "block_size": 4}
    sequences = [
        stack,
        resampling,  # of 14 tokens, so that the last group is short
        HAttention1D(8, pos_emb=True, **small),
        CausalHAttention1D(8, relative_bias=True, **small),
        OverItself(8, **small),
    ]
    # reference: inductor stops at the materialised masks, 'vr must not be None' (torch 2.13)
    if os.environ.get("FOVEAL_IMPL") != "reference":
        drawing = DRAWING | {"dim": 8, "image_grid": (2, 4)}
        sequences.append(DALLE(**drawing, depth=1, attn_types=("conv_like",)).transformer)
    pictures = [
        (HaloAttention(dim=8, block_size=8, halo_size=3, dim_head=8, heads=1), (8, 13, 18)),
        (SeparableAttention(8, 1, 7, grid=(2, 3)), (13, 18, 8)),
    ]
    vqvae, codes = MODELS["vqvae"]()
    inputs = [features(2, 14, 8)] * len(sequences) + [features(2, *size) for _, size in pictures]
    modules = [*sequences, *(one for one, _ in pictures), vqvae]
    return SideBySide(*modules), inputs + codes


def check(make, backend):
    torch.manual_seed(0)
    torch._dynamo.reset()
    model, inputs = make()
    model.eval()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for ours, expected in zip(
        results(model, compiled, inputs), results(model, model, inputs), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_one_graph(name):
    """Forward and backward are traced without a break."""
    # the other partitioner looks for what is cheap to compute again, which inductor's test needs
    check(MODELS[name], "aot_eager_default_partitioner")


class Kernel:
    """A function of inductor's that waits for its library."""

    def __init__(self, argtypes, build):
        self.pointers = ["*" in argtype for argtype in argtypes]
        self.build = build
        self.function = None

    def __call__(self, *arguments):
        if self.function is None:
            self.build()
        given = zip(arguments, self.pointers, strict=True)
        self.function(
            *(ctypes.c_void_p(x.data_ptr()) if p else ctypes.c_int64(x) for x, p in given)
        )


@pytest.fixture
def one_unit(monkeypatch):
    """Kernels are compiled together, when the first is called.

    One by one, as inductor does, each costs the compiler a second of headers.
    """
    waiting = []

    class Library(codecache.CppPythonBindingsCodeCache):
        _load_library_inner = staticmethod(codecache.CppCodeCache._load_library_inner)

    def build():
        sources = "\n".join(source for _, source in waiting)
        library = Library.load(sources, extra_flags=("-g0",))
        for number, (kernel, _) in enumerate(waiting):
            kernel.function = library[f"kernel_{number}"]
        waiting.clear()

    def load(argtypes, source):
        assert source.count(" kernel(") == 1
        assert all("*" in argtype or "int" in argtype for argtype in argtypes)
        kernel = Kernel(argtypes, build)
        waiting.append((kernel, source.replace(" kernel(", f" kernel_{len(waiting)}(")))
        return kernel

    monkeypatch.setattr(codecache.CppPythonBindingsCodeCache, "load_pybinding", load)


@pytest.mark.slow
@pytest.mark.usefixtures("one_unit")
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor(monkeypatch, tmp_path):
    """The default compiler's code computes the same."""
    # no code from before an operator changed
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    # the draws of eager mode; loops of numbers, not of vectors, which compile sooner, as they do
    # unoptimised, and no trial of the vectors; no processes that wait for kernels of Triton;
    # nothing kept for another run; no look for what CUDA could record
    options = {"fallback_random": True, "cpp.simdlen": 1, "cpp.vec_isa_ok": True}
    options |= {"compile_threads": 1, "fx_graph_cache": False, "graph_partition": False}
    options |= {"aot_inductor.debug_compile": True, "cpp_cache_precompile_headers": False}
    # the backward pass at once, so that its kernels are of the same unit
    at_once = torch._functorch.config.patch(force_non_lazy_backward_lowering=True)
    with torch._inductor.config.patch(options), at_once:
        check(layers, "inductor")
