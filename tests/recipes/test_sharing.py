"""[parallel] sequence: processes that share sequences train and score what one process does."""

import copy
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import foveal
from foveal import parallel
from foveal.recipes.captions.kind import KIND as DALLE_KIND
from foveal.recipes.config import config_from_dict, load_recipe, recipe_names
from foveal.recipes.kind import KindTask, find_kind
from foveal.recipes.sharing import Parts, align_of
from foveal.training.layout import Layout, ParallelConfig

TINY = {"dim": 16, "depth": 2, "heads": 2, "dim_head": 8}
COMPAT = "h-transformer-1d-0.1.9"
WINDOW, PYRAMID = "SlidingWindow(9)", {"name": "Pyramid", "block_size": 4, "causal": True}
BYTES = {"task": "bytes", "data": {"context": 67}}
PIXELS = {"task": "pixels", "data": {"size": 4, "held_out": 0.5}}
CASES = {
    "windows": (BYTES, {"name": "TransformerLM", "pattern": [WINDOW, PYRAMID], **TINY}, 3),
    "h-transformer": (
        {"task": "bytes", "data": {"context": 64}},
        {"name": "HTransformer1D", "causal": True, "block_size": 4, **TINY},
        4,
    ),
    "chunks": (
        {
            "task": "bytes",
            "data": {"context": 50},
            "training": {"loss_chunk": 7, "activation_checkpointing": True},
        },
        {"name": "TransformerLM", "pattern": WINDOW, "tie_embeddings": True, **TINY},
        2,
    ),
    "short": (
        {"task": "bytes", "data": {"context": 3}},
        {"name": "TransformerLM", "pattern": PYRAMID, **TINY},
        3,
    ),
    "pixels": (PIXELS, {"name": "TransformerLM", "pattern": WINDOW, **TINY}, 2),
}


class Played(Layout):
    """The layout of a simulated rank."""

    mesh = None


def layout_of(rank, config, data_rank=0, data_size=1):
    """The place of a rank of a simulation, of which each group has `data_size` fellows."""
    made = Played(data_rank * rank.size + rank.rank, data_size * rank.size, config.parallel)
    object.__setattr__(made, "mesh", {"cp": rank})
    return made


def config_of(case, text, sequence, chunks=True):
    """The configuration of a case, on a text or on pictures beside it."""
    plan, model, _ = CASES[case]
    path = text if plan["task"] == "bytes" else draw_pictures(text.parent / "pictures")
    data = {**plan["data"], "path": str(path)}
    training = {"steps": 3, "batch_size": 2, **(plan.get("training", {}) if chunks else {})}
    table = {"task": plan["task"], "model": model, "data": data, "training": training}
    return config_from_dict({**table, "parallel": {"sequence": sequence}}, "a test")


def draw_pictures(folder):
    """A folder of a few small pictures of noise."""
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3))):
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "ab"[number % 2] / f"{number}.png")
    return folder


def act_as(task):
    """Loss and gradients of one batch, and what the evaluation finds, in float64."""
    model = task.model.double()
    loss = task.loss(model, task.stream.next())
    loss.backward()
    place = task.layout
    with torch.no_grad():
        totals = task.evaluate(quick=True, rank=place.rank, world_size=place.size)
    return loss.detach(), [p.grad for p in model.parameters()], totals[task.score]


@pytest.mark.parametrize("case", CASES)
def test_ranks_train_and_score_what_one_process_does(case, text):
    """Loss, gradients and score of the same rows, to 1e-10 in float64, in parts of any length."""
    text.write_bytes(text.read_bytes()[:1000])
    ranks = CASES[case][2]
    config = config_of(case, text, ranks)
    alone = KindTask(config_of(case, text, 1, chunks=False))
    weights = alone.model.state_dict()
    wanted, gradients, score = act_as(alone)

    def act(rank):
        task = KindTask(config, layout_of(rank, config))
        task.model.load_state_dict(weights)
        assert task.units_per_batch == round(alone.units_per_batch / ranks)
        return act_as(task)

    losses, grads, scores = zip(*parallel.simulate(ranks, act), strict=True)
    torch.testing.assert_close(sum(losses) / ranks, wanted, rtol=1e-12, atol=0)
    for parts, whole in zip(zip(*grads, strict=True), gradients, strict=True):
        torch.testing.assert_close(sum(parts) / ranks, whole, rtol=0, atol=1e-10)
    bits, counts = zip(*scores, strict=True)
    assert (sum(bits), sum(counts)) == pytest.approx(score, rel=1e-10)


def test_captions_are_shared_too():
    """A DALL-E cuts text and picture itself: loss, gradients and score of one process."""
    sizes = {
        "num_text_tokens": 30,
        "text_seq_len": 7,
        "num_image_tokens": 20,
        "image_grid": (4, 5),
    }
    torch.manual_seed(0)
    model = foveal.DALLE(**TINY, **sizes, attn_types=("axial_row", "conv_like")).double()
    batch = torch.randint(1, 30, (3, 7)), torch.randint(20, (3, 20))
    config = load_recipe("captions-dalle")
    data = dataclasses.replace(config.data, null_share=0.0)  # what is drawn is another promise
    config = dataclasses.replace(config, data=data)

    def act(model, parts=None):
        task = SimpleNamespace(model=model, parts=parts, config=config, assets={"scored": batch})
        loss = DALLE_KIND.loss(task, model, batch)
        loss.backward()
        with torch.no_grad():
            totals = DALLE_KIND.evaluate(task, quick=True, rank=0, world_size=1)
        return loss.detach(), [p.grad for p in model.parameters()], *totals.values()

    def act_as(rank):
        mine, parts = copy.deepcopy(model), Parts(rank)
        parts.share(mine, config)
        return act(mine, parts)

    losses, grads, scores = zip(*parallel.simulate(3, act_as), strict=True)
    wanted, gradients, score = act(model)
    torch.testing.assert_close(sum(losses) / 3, wanted, rtol=1e-12, atol=0)
    for pieces, whole in zip(zip(*grads, strict=True), gradients, strict=True):
        torch.testing.assert_close(sum(pieces) / 3, whole, rtol=0, atol=1e-10)
    bits, counts = zip(*scores, strict=True)
    assert (sum(bits), sum(counts)) == pytest.approx(score, rel=1e-10)


def test_data_ranks_read_other_rows(text):
    """Processes that share sequences read the same rows and score the same ones, others others."""
    config = config_of("windows", text, 2)

    def act(rank):
        rows = []
        for group in range(2):
            task = KindTask(config, layout_of(rank, config, group, 2))
            rows.append(task.stream.next()[0])
        return rows

    one, two = parallel.simulate(2, act)
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert not torch.equal(one[0], one[1])


def shared(name, **sections):
    """A recipe whose sequences two processes are to share."""
    config = load_recipe(name)
    for section, values in sections.items():
        part = dataclasses.replace(getattr(config, section), **values)
        config = dataclasses.replace(config, **{section: part})
    return dataclasses.replace(config, parallel=ParallelConfig(sequence=2))


@pytest.mark.parametrize("name", recipe_names())
def test_tasks_without_sequences_are_refused_by_name(name):
    """Before any data are read, and with what to do instead."""
    config = shared(name)
    if find_kind(config.task).shares:
        return
    with pytest.raises(ValueError, match=f"'{config.task}' has no long.*the examples") as caught:
        KindTask(config, Layout(0, 2, config.parallel))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"data": {"pack": True}}, "data.pack must be false where sequences are shared"),
        ({"training": {"compile": True}}, "training.compile must be false"),
    ],
)
def test_settings_that_cannot_be_shared_are_refused(sections, words):
    """In one line with the setting and the number of processes."""
    config = shared("bytes-transformer", **sections)
    with pytest.raises(ValueError, match=rf"{words}.*got parallel.sequence=2"):
        KindTask(config, Layout(0, 2, config.parallel))


def test_models_that_cannot_be_shared_are_refused(text):
    """When the run is set up, with what to do instead."""
    model = {"name": "HTransformer1D", **TINY, "causal": True, "compat": COMPAT}
    table = {"model": model, "data": {"path": str(text)}, "training": {"steps": 1}}
    config = config_from_dict({**table, "parallel": {"sequence": 2}}, "a test")

    def act(rank):
        with pytest.raises(ValueError, match=r"cannot cut.*Leave out parallel.sequence=2"):
            KindTask(config, layout_of(rank, config))

    parallel.simulate(2, act)


@pytest.mark.parametrize(("length", "ranks", "align"), [(262_144, 4, 1024), (67, 3, 1), (0, 2, 1)])
def test_parts_begin_where_clusters_do(length, ranks, align):
    """At multiples of a power of two near a 64th of a part."""
    assert align_of(length, ranks) == align
