"""A linear classifier of the embedded emoji: what `foveal train images-sepvit` has to beat.

    python benchmarks/emoji.py [--size 32] [RUN]

Fits multinomial logistic regressions on the pixels that the recipe sees (several penalties, with
and without balanced classes) and prints the best balanced accuracy on the held-out emoji, so that
the comparison favours the baseline. With RUN, the score of that run stands beside it.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from foveal.data.augment import to_floats
from foveal.data.image_sources import open_images
from foveal.data.images import ImageDataConfig, ImageSet


def pixels(images: ImageSet) -> Tensor:
    return to_floats(images.read(torch.arange(len(images)))).flatten(1)


def balanced_accuracy(said: Tensor, labels: Tensor) -> float:
    """Mean over classes of the share of their pictures that are named right."""
    classes = labels.unique()
    return float(torch.stack([(said[labels == c] == c).float().mean() for c in classes]).mean())


def fit(x: Tensor, labels: Tensor, penalty: float, weights: Tensor | None) -> torch.nn.Linear:
    """Logistic regression by L-BFGS; `penalty` times half the squared norm of the weights."""
    model = torch.nn.Linear(x.shape[1], int(labels.max()) + 1)
    torch.nn.init.zeros_(model.weight)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=150, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(model(x), labels, weights)
        value = value + 0.5 * penalty * model.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return model


def baseline(size: int) -> float:
    train, test = open_images(ImageDataConfig(size=size))
    x, held_out = pixels(train), pixels(test)
    counts = train.labels.bincount().float()
    best = 0.0
    for weights in (None, counts.sum() / (len(counts) * counts)):
        for penalty in (1e-3, 1e-2, 1e-1, 1.0):
            model = fit(x, train.labels, penalty, weights)
            with torch.no_grad():
                score = balanced_accuracy(model(held_out).argmax(1), test.labels)
            kind = "plain" if weights is None else "balanced"
            print(f"logistic regression, {kind} classes, penalty {penalty:g}: {score:.1%}")
            best = max(best, score)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?")
    parser.add_argument("--size", type=int, default=32)
    args = parser.parse_args()
    best = baseline(args.size)
    print(f"best balanced accuracy of a logistic regression: {best:.1%}")
    if args.run:
        from foveal.recipes.score import evaluate

        ours = evaluate(args.run)["balanced_accuracy"]
        print(f"balanced accuracy of the run: {ours:.1%} ({100 * (ours - best):+.1f} points)")


if __name__ == "__main__":
    main()
