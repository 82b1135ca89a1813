"""What processes do that share the weights of a model: played by ranks.py, see test_processes.py.

The other side of each comparison is data-parallel training by hand: whole weights in each process,
whose gradients are added up.
"""

import json
import os
import pickle
import signal
from pathlib import Path

import torch
import torch.distributed as dist
from ranks import finish, start
from torch import nn

from foveal import patterns as P
from foveal.models import (
    CLIP,
    DALLE,
    VQVAE,
    DiscreteVAE,
    HourglassTransformerLM,
    HTransformer1D,
    TransformerLM,
    create_model,
)

SMALL = {"dim": 16, "depth": 2, "heads": 2, "dim_head": 8, "num_tokens": 40}
STAGES = {"num_classes": 5, "depths": (1, 1), "dims": (8, 8), "heads": (1, 1), "strides": (1, 2)}
WINDOWS = {"window_sizes": ((4,), (2,)), "stem_dims": (8,)}
WORDS = {"num_text_tokens": 40, "text_seq_len": 6, "num_image_tokens": 20, "image_grid": 4}
GRIDS = {"image_size": 16, "num_layers": 2, "num_tokens": 16, "codebook_dim": 8, "hidden_dim": 8}


class Own(nn.Module):
    """Somebody's own model: a ModuleList of Sequentials, and a number that all of them read."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 9)) for _ in range(2)
        )
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x) * self.scale
        return x


class ByParts(Own):
    """It never calls a layer, only what is in it."""

    def forward(self, x):
        for first, _, last in self.layers:
            x = last(first(x))
        return x * self.scale


def language(**options):
    return TransformerLM(pattern=P.SlidingWindow(8), **{**SMALL, **options})


def hierarchical(**options):
    options = {"block_size": 8, "causal": True, "max_seq_len": 32, **options}
    return HTransformer1D(**SMALL, **options)


def drawing(**options):
    small = {name: value for name, value in SMALL.items() if name != "num_tokens"}
    return DALLE(attn_types=("axial_row", "full"), **WORDS, **small, **options)


def matching():
    sizes = {"dim_text": 16, "dim_image": 16, "dim_latent": 8, "text_heads": 2, "visual_heads": 2}
    depths = {"text_enc_depth": 1, "visual_enc_depth": 1, "text_seq_len": 6}
    return CLIP(num_text_tokens=40, visual_image_size=8, visual_patch_size=4, **sizes, **depths)


FAMILIES = {
    "tied": (lambda: language(tie_embeddings=True), "tokens"),
    "checkpointing": (lambda: language().activation_checkpointing(), "tokens"),
    "shared bias": (lambda: language(positions="t5"), "tokens"),
    "tiny": (lambda: language(dim=2, heads=1, dim_head=2, ff_mult=0.5, kv_heads=1), "tokens"),
    "hourglass": (lambda: HourglassTransformerLM(**{**SMALL, "depth": (1, 1, 1)}), "tokens"),
    "h": (hierarchical, "tokens"),
    "reversible h": (lambda: hierarchical(reversible=True, shift_tokens=True), "tokens"),
    "dalle": (lambda: drawing(shared_ff_ids=(0, 0)), "captions"),
    "reversible dalle": (lambda: drawing(reversible=True), "captions"),
    "halonet": (lambda: create_model("halonet_h0", block_size=4, halo_size=1, **STAGES), "images"),
    "sepvit": (lambda: create_model("sepvit_lite", image_size=16, **WINDOWS, **STAGES), "images"),
    "vae": (lambda: DiscreteVAE(num_resnet_blocks=1, **GRIDS), "pictures"),
    "vqvae": (lambda: VQVAE(num_resnet_blocks=1, **GRIDS), "pictures"),
    "clip": (matching, "pairs"),
    "own": (Own, "numbers"),
}


OFTEN = ("tied", "tiny", "reversible h", "dalle", "halonet", "clip", "own")
"""Those that are played always; the others with FOVEAL_LONG=1."""


def batch_of(kind, rank, number):
    generator = torch.Generator().manual_seed(10 * number + rank)

    def tokens(*shape, high=40):
        return torch.randint(1, high, shape, generator=generator)

    def pictures(size):
        return torch.rand(2, 3, size, size, generator=generator)

    return {
        "tokens": lambda: (tokens(2, 16),),
        "captions": lambda: (tokens(2, 6), tokens(2, 16, high=20)),
        "images": lambda: (pictures(16),),
        "pictures": lambda: (pictures(16),),
        "pairs": lambda: (tokens(2, 6), pictures(8)),
        "numbers": lambda: (torch.randn(4, 9, generator=generator),),
    }[kind]()


def loss_of(model, kind, batch, seed):
    torch.manual_seed(seed)
    if kind in ("captions", "pictures", "pairs"):
        return model(*batch, return_loss=True)
    return model(*batch).float().square().mean()


def whole(value):
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def local(value):
    return value.to_local() if hasattr(value, "to_local") else value


class Pair:
    """A model that is shared out, and the same by hand."""

    def __init__(self, make, optimizer="adamw"):
        from accelerate import Accelerator

        from foveal.training import OptimizerConfig
        from foveal.training.optimizers import make_optimizers
        from foveal.training.sharding import Sharded

        self.accelerator = Accelerator(cpu=True)
        self.rank, self.size = self.accelerator.process_index, self.accelerator.num_processes
        config = OptimizerConfig(name=optimizer, learning_rate=1e-3)

        def optimizers(model):
            return make_optimizers(model, config, torch.device("cpu"))

        torch.manual_seed(0)
        self.by_hand = make()
        torch.manual_seed(self.rank)  # the first one's weights are everybody's
        model = make()
        self.optimizers = optimizers(self.by_hand)
        self.sharded = Sharded(model, optimizers, self.accelerator, compile=False)

    def step(self, kind, number, clip=0.1, move=True):
        """A step of two micro-batches for both; how far their gradients are apart."""
        for part in range(2):
            batch = batch_of(kind, self.rank, 2 * number + part)
            with self.sharded.synchronised(last=part == 1):
                (loss_of(self.sharded.model, kind, batch, self.rank) / 2).backward()
            (loss_of(self.by_hand, kind, batch, self.rank) / 2).backward()
        for p in self.by_hand.parameters():
            if p.grad is not None:
                dist.all_reduce(p.grad)
                p.grad /= self.size
        torch.nn.utils.clip_grad_norm_(self.by_hand.parameters(), clip)
        self.sharded.settle(clip)
        gradients = self.apart(lambda p: p.grad)
        for optimizer in (*self.optimizers, *self.sharded.optimizers) if move else ():
            optimizer.step()
            optimizer.zero_grad()
        return gradients

    def apart(self, of=lambda p: p.detach()):
        """The largest difference of a weight, or of something of it."""
        pairs = zip(self.sharded.model.parameters(), self.by_hand.parameters(), strict=True)
        found = [(of(p), of(q)) for p, q in pairs]
        assert all((a is None) == (b is None) for a, b in found)
        both = [(local(a), self.own(a, b)) for a, b in found if a is not None]
        return max((float((a - b).abs().max()) for a, b in both if a.numel()), default=0.0)

    def own(self, shared, value):
        """Which part of a whole tensor this process holds."""
        if not hasattr(shared, "placements"):
            return value
        (place,) = shared.placements
        parts = value.chunk(self.size, place.dim)
        return parts[self.rank] if self.rank < len(parts) else value.narrow(place.dim, 0, 0)

    def share(self):
        """What this process holds of weights and optimizer state, of all."""
        state = [
            v for one in self.sharded.optimizers for s in one.state.values() for v in s.values()
        ]
        held = [*self.sharded.model.parameters(), *state]
        return sum(local(v).numel() for v in held) / sum(v.numel() for v in held)

    def everything(self):
        """All weights and moments by name, whole."""
        from foveal.training.moments import read_moments

        model, optimizers = self.sharded.model, self.sharded.optimizers
        found = {name: whole(value.detach()) for name, value in model.state_dict().items()}
        for name, kept in sorted(read_moments(model, optimizers).items()):
            found |= {f"{name} {kind}": whole(kept[kind]) for kind in sorted(kept)}
        return found

    def save(self, step, root="kept"):
        state = {"step": step, "stream": {"position": 3}}
        return self.sharded.save(Path(root), step, state, {"a": 1}, keep=3, check=lambda: None)


def every_family(rank):
    """Two processes: one step of each, and what one process alone computes from time to time."""
    torch.set_num_threads(1)
    for name in FAMILIES if os.environ.get("FOVEAL_LONG") else OFTEN:
        make, kind = FAMILIES[name]
        pair = Pair(make, "muon" if name in ("tiny", "dalle") else "adamw")
        moved = name in ("tied", "tiny", "own")
        gradients, alone = pair.step(kind, 0, move=moved), 0.0
        with pair.sharded.whole(), torch.no_grad():
            if rank == 1:  # the other one does not take part
                models = pair.by_hand.eval(), pair.sharded.model.eval()
                losses = [loss_of(one, kind, batch_of(kind, rank, 7), 0) for one in models]
                alone = float(losses[0] - losses[1])
        print(json.dumps([name, gradients, pair.apart(), abs(alone), pair.share()]))
    pair = Pair(ByParts)
    try:
        pair.step("numbers", 0)
    except ValueError as error:
        print(json.dumps(str(error)))


def keep_two(rank):
    """Two checkpoints of two processes; their weights and moments beside them, by hand."""
    torch.set_num_threads(1)
    from foveal.training.checkpoints import save_checkpoint

    pair = Pair(lambda: language(num_tokens=41, tie_embeddings=True))
    for step in (1, 2):
        pair.step("tokens", step)
        pair.save(step)
    found = pair.everything()
    if rank == 0:
        torch.save(found, "expected.pt")
        state = {"step": 2, "optimizers": [one.state_dict() for one in pair.optimizers]}
        save_checkpoint(Path("whole"), 2, pair.by_hand, state, {}, keep=3)
        torch.save([one.state_dict() for one in pair.optimizers], "by-hand.pt")
    dist.barrier()
    read_again(rank)


def read_again(rank):
    """However many: what two have kept, and what one has, to the bit; nothing is unpickled."""
    torch.set_num_threads(1)

    def refuse(*details, **more):
        raise AssertionError("something is unpickled")

    expected, by_hand = torch.load("expected.pt"), torch.load("by-hand.pt")
    pair = Pair(lambda: language(num_tokens=41, tie_embeddings=True))
    load, pickle.load = pickle.load, refuse
    state = pair.sharded.load(Path("kept/step-00000002"))
    pickle.load = load
    found = pair.everything()
    same = [torch.equal(found[name], value) for name, value in expected.items()]
    assert found.keys() == expected.keys()
    print("kept", state["step"], state["stream"]["position"], len(same), all(same))
    if pair.size > 2:
        return
    pair.sharded.load(Path("whole/step-00000002"))
    found = pair.everything()
    weights = dict(pair.by_hand.named_parameters())
    from safetensors.torch import load_file

    file = load_file("whole/step-00000002/model.safetensors")
    same = [torch.equal(found[name], file[name]) for name in weights]
    moments = by_hand[0]["state"]
    names = [name for name in weights if weights[name].ndim >= 2]
    names += [name for name in weights if weights[name].ndim < 2]
    for number, name in enumerate(names):
        same += [torch.equal(found[f"{name} {k}"], v) for k, v in moments[number].items()]
    print("whole", len(same), all(same))


def spoil(rank):
    """The second of two cannot write, and dies in the midst of writing the next time."""
    torch.set_num_threads(1)
    from foveal.training import parts
    from foveal.training.processes import StoppedElsewhereError

    pair = Pair(lambda: language(num_tokens=41))
    pair.step("tokens", 1)
    pair.save(1, "spoilt")
    written = parts.HuggingFaceStorageWriter.write_data

    def full(*details):
        raise OSError(28, "No space left on device")

    def die(*details):
        written(*details)
        os.kill(os.getpid(), signal.SIGKILL)

    if rank == 1:
        parts.HuggingFaceStorageWriter.write_data = full
    try:
        pair.save(2, "spoilt")
    except (OSError, StoppedElsewhereError) as error:
        print(type(error).__name__, error, sorted(os.listdir("spoilt")), sep="|", flush=True)
    if rank == 1:
        parts.HuggingFaceStorageWriter.write_data = die
    pair.save(3, "spoilt")


def weights_in_parts(recipe):
    """All of the above, and a run by the command."""
    results = [finish(start(2, every_family)), finish(start(2, keep_two))]
    results.append(finish(start(4, read_again)))
    results.append(finish(start(2, spoil), patience=20))
    shared = ["--output", "run", "--parallel.shard", "fsdp", "--model.dropout", 0]
    results.append(finish(start(2, ["train", recipe, *shared, "--steps", 12])))
    return results
