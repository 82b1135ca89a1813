"""From the settings of a task's data to what is trained on, and to what is scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from foveal.data.examples import ExampleParts, Examples
from foveal.data.image_hub import STREAM
from foveal.data.walk import LeftOut

SetT = TypeVar("SetT", bound=Any)


@dataclass(frozen=True)
class Reader(Generic[SetT]):
    """How the examples of some kind are found and read; all else is done here, for every kind.

    Attributes:
        find: (config, path, left, most) -> a data set by part, unread; of a training part that is
            streamed only `most` examples.
        read: (config, examples, left, most) -> a set of them; with `most` no more is read than it
            takes to have so many that are good.
        thing, things: what one example is called, and several.
        classified: whether they have classes, of which training needs two.
        limit: the setting that says how many are used for training at most; 0 is all.
    """

    find: Callable[[Any, str, LeftOut, int], ExampleParts]
    read: Callable[[Any, Examples, LeftOut, int], SetT]
    thing: str
    things: str
    classified: bool = True
    limit: str = "max_images"

    def pair(self, config: Any) -> tuple[SetT, SetT]:
        """What is trained on, and what is scored meanwhile.

        Raises:
            ValueError: no such data, or none of it can be used.
        """
        check_data(config)
        left, most = LeftOut(), getattr(config, self.limit)
        if config.path.startswith(STREAM) and not most:
            raise ValueError(
                f"data.path={config.path!r} has no end; say with data.{self.limit} how many "
                f"{self.things} of it are kept, or name them as hf:NAME."
            )
        train, held_out = self._split(config, self.find(config, config.path, left, most), left)
        sets = self.read(config, train, left, most), self.read(config, held_out, left, 0)
        if self.classified and len(train.classes) < 2:
            raise ValueError(
                f"data.path={config.path!r} has {len(train.classes)} class, but a classifier "
                f"needs at least 2; put {self.things} of two classes or more into a folder each."
            )
        for part, use in zip(sets, ("to train on", "to score on"), strict=True):
            self._check(part, config.path, use, left)
        left.warn(config.path, self.thing)
        return sets

    def to_score(
        self, config: Any, data: str | None = None, classes: Sequence[str] | None = None
    ) -> SetT:
        """What a run is scored on: its own test part, else what it held out, or other data.

        Args:
            data: other data: their test part, else their validation part, else all of them.
            classes: those of the run; labels become places in them, and examples of other classes
                are left out and counted.

        Raises:
            ValueError: no such data, or none of a known class.
        """
        check_data(config)
        left = LeftOut()
        path, most = (data, 0) if data is not None else (config.path, getattr(config, self.limit))
        parts = self.find(config, path, left, most)
        found = parts.scored() if data is not None else parts.test
        found = found or self._split(config, parts, left)[1]
        if classes is not None:
            known = found.with_classes(classes, left)
            if len(found) and not len(known):
                raise ValueError(
                    f"the data must have classes of the run, {', '.join(classes)}; {path} has "
                    f"{', '.join(found.classes)}."
                )
            found = known
        scored = self.read(config, found, left, 0)
        self._check(scored, path, "to score on", left)
        left.warn(path, self.thing)
        return scored

    def _split(self, config: Any, parts: ExampleParts, left: LeftOut) -> tuple[Examples, Examples]:
        if not config.valid:
            return parts.pair(config.held_out)
        held_out = self.find(config, config.valid, left, 0).scored()
        return parts.train.without(held_out), held_out.with_classes(parts.train.classes, left)

    def _check(self, part: SetT, path: str, use: str, left: LeftOut) -> None:
        part.skipped = list(left.problems)
        if len(part):
            return
        first = list(dict.fromkeys(part.skipped))
        reason = f"; the first of {len(first)} skipped: {first[0]}" if first else "."
        kinds = f" Left out: {left.kinds()}." if left.kinds() else ""
        raise ValueError(f"data.path={path!r} has no {self.things} {use}{reason}{kinds}")


_RULES: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (("size",), lambda x: x >= 4, "be at least 4 pixels"),
    (
        ("length", "text_length", "train_examples", "test_examples"),
        lambda x: x >= 1,
        "be at least 1",
    ),
    (("held_out",), lambda x: 0 < x < 1, "be between 0 and 1"),
    (("least_area",), lambda x: 0 < x <= 1, "be above 0, at most 1"),
    (("null_share",), lambda x: 0 <= x < 1, "be at least 0 and below 1"),
    (
        ("rand_augment", "erasing", "label_smoothing", "balance"),
        lambda x: 0 <= x <= 1,
        "be from 0 to 1",
    ),
    (("views",), lambda x: x in (1, 2, 10), "be 1, 2 or 10"),
    (
        ("crop", "mixup", "cutmix", "max_images", "max_examples", "scored_images"),
        lambda x: x >= 0,
        "not be negative",
    ),
)
"""What values of settings of these names must be, whichever task they are of."""


def check_data(config: Any) -> None:
    """Raise ValueError for values of data settings that no data can have."""
    for names, holds, rule in _RULES:
        for name in names:
            value = getattr(config, name, None)
            if value is not None and not holds(value):
                raise ValueError(f"data.{name} must {rule}, got {value}.")
