"""From the name of a data set to two `ImageSet`s: one to train on, one to score on."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveal.data.emoji import EMOJI, load_emoji
from foveal.data.folders import TEST, split_folders, subfolders
from foveal.data.images import ImageDataConfig, ImageSet, check_image_config
from foveal.data.pictures import SUFFIXES, resize_and_crop, try_square

_IN_MEMORY = 2 << 30  # bytes of pixels up to which a data set is decoded once
_SHOWN = 3

Pair = tuple[ImageSet, ImageSet]


def open_images(config: ImageDataConfig) -> Pair:
    """The pictures to train on and those to score on.

    Raises:
        ValueError: no such data, no classes, no pictures, or an archive with other keys.
    """
    check_image_config(config)
    path = config.path
    if path == EMOJI:
        train, test = _open_emoji(config)
    elif path.startswith(("hf:", "hf-stream:")):
        train, test = _open_datasets(config)
    elif path.endswith(".npz"):
        train, test = _open_archive(config)
    else:
        train, test = _open_folder(config)
    if config.max_images:
        train = train.subset(_shuffled(len(train))[: config.max_images], train.name)
    for part, what in ((train, "to train on"), (test, "to score on")):
        if not len(part):
            raise ValueError(f"data.path={path!r} has no pictures {what}.")
        if len(part.classes) < 2:
            raise ValueError(
                f"data.path={path!r} has {len(part.classes)} class, but a classifier needs at "
                "least 2; put the pictures into a folder for each class."
            )
    warn_of(train.skipped, path)
    return train, test


# -- emoji ----------------------------------------------------------------------------------------


def _open_emoji(config: ImageDataConfig) -> Pair:
    data = load_emoji(config.size)
    whole = ImageSet.from_pixels(
        EMOJI, data["images"], data["label"], [str(name) for name in data["classes"]]
    )
    return _split(whole, torch.from_numpy(data["is_test"]).bool())


# -- archives -------------------------------------------------------------------------------------


def _open_archive(config: ImageDataConfig) -> Pair:
    path = Path(config.path).expanduser()
    if not path.is_file():
        raise ValueError(f"data.path must be an archive that exists, got {config.path!r}.")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:
        raise ValueError(f"{path} is not a readable .npz archive: {error}.") from None
    labels = _one_of(arrays, ("label", "labels"), path)
    if len(labels) == 0:
        raise ValueError(f"the archive {path} holds no pictures.")
    if labels.min() < 0:
        raise ValueError(f"labels of {path} must not be negative, got {labels.min()}.")
    labels = labels.astype(np.int64)
    default = [str(number) for number in range(int(labels.max()) + 1)]
    classes = [str(name) for name in arrays.get("classes", default)]
    if int(labels.max()) >= len(classes):
        raise ValueError(
            f"labels of {path} must be below the {len(classes)} classes, got {labels.max()}."
        )
    skipped: list[tuple[int, str]] = []
    if "images" in arrays:
        pixels = _resized(arrays["images"], config.size, path)
    else:
        pixels, skipped = _decoded(arrays, len(labels), config.size, path)
    if len(pixels) != len(labels):
        raise ValueError(f"{path} has {len(pixels)} images, but {len(labels)} labels.")
    good = np.ones(len(labels), dtype=bool)
    good[[number for number, _ in skipped]] = False
    whole = ImageSet.from_pixels(
        path.name, pixels[good], labels[good], classes, [text for _, text in skipped]
    )
    is_test = arrays.get("is_test")
    return _split(
        whole, None if is_test is None else torch.from_numpy(is_test[good]).bool(), config
    )


def _one_of(arrays: dict[str, Any], names: Sequence[str], path: Path) -> np.ndarray:
    for name in names:
        if name in arrays:
            found: np.ndarray = arrays[name]
            return found
    raise ValueError(
        f"the archive {path} must have {names[0]!r}, and 'images' or 'data' with 'offset'; it has "
        f"{', '.join(sorted(arrays)) or 'nothing'}."
    )


def _resized(images: np.ndarray, size: int, path: Path) -> np.ndarray:
    """Plain arrays (n, height, width[, channels]) or (n, channels, height, width) as needed."""
    from PIL import Image

    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4:
        raise ValueError(f"'images' of {path} must have 3 or 4 axes, got shape {images.shape}.")
    if images.shape[3] not in (1, 3, 4) and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.shape[3] not in (1, 3, 4):
        raise ValueError(f"'images' of {path} must have 1 or 3 channels, got {images.shape}.")
    if images.dtype != np.uint8:
        top = 1.0 if images.max(initial=0) <= 1 else 255.0
        images = (images.clip(0, top) * (255 / top)).round().astype(np.uint8)
    images = np.repeat(images, 3, 3) if images.shape[3] == 1 else images[..., :3]
    if images.shape[1:3] == (size, size):
        return images
    return np.stack([resize_and_crop(Image.fromarray(image), size) for image in images])


def _decoded(
    arrays: dict[str, Any], count: int, size: int, path: Path
) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Encoded files back to back in `data`, the i-th from offset[i] to offset[i + 1]."""
    data, offset = _one_of(arrays, ("data",), path), _one_of(arrays, ("offset",), path)
    if len(offset) != count + 1 or offset[0] < 0 or offset[-1] > len(data):
        raise ValueError(
            f"'offset' of {path} must have {count + 1} entries within the {len(data)} bytes of "
            f"'data', got {len(offset)}."
        )
    raw = data.tobytes()
    jobs = (
        (raw[offset[i] : offset[i + 1]], size, f"picture {i} of {path.name}") for i in range(count)
    )
    return collect(jobs, count, size)


# -- folders --------------------------------------------------------------------------------------


def _open_folder(config: ImageDataConfig) -> Pair:
    root = Path(config.path).expanduser()
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise ValueError(
            f"data.path={config.path!r} {what}; name a folder of class folders, a .npz archive, "
            "or 'emoji' for the embedded pictures."
        )
    train_root, test_root = split_folders(root)
    classes = _class_names(train_root)
    train = _read_folder(train_root, classes, config)
    if test_root is None:
        return _split(train, None, config)
    test = _read_folder(test_root, classes, config)
    train.skipped += test.skipped
    return train, test


def _class_names(root: Path) -> list[str]:
    names = subfolders(root)
    if not names:
        raise ValueError(
            f"{root} has no class folders; put the pictures of each class into their own folder."
        )
    return names


def _read_folder(root: Path, classes: Sequence[str], config: ImageDataConfig) -> ImageSet:
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(p for p in (root / name).rglob("*") if p.suffix.lower() in SUFFIXES)
        files += [str(path) for path in found if path.is_file()]
        labels += [label] * (len(files) - len(labels))
    if not files:
        raise ValueError(f"the class folders of {root} hold no pictures.")
    if len(files) * config.size**2 * 3 > _IN_MEMORY:
        lazy = _LazyFiles(files, config.size)
        return ImageSet(str(root), torch.tensor(labels), classes, lazy)
    jobs = ((path, config.size, path) for path in files)
    pixels, skipped = collect(jobs, len(files), config.size)
    bad = dict(skipped)
    good = [number for number in range(len(files)) if number not in bad]
    return ImageSet.from_pixels(
        root.name, pixels[good], np.array(labels)[good], classes, list(bad.values())
    )


class _LazyFiles:
    """Decodes the pictures of a batch when they are asked for, several at a time.

    A damaged file comes out as a grey picture, with a warning that names it once.

    Args:
        files: their paths.
        size: of the result.
    """

    def __init__(self, files: Sequence[str], size: int) -> None:
        self.files, self.size = files, size
        self._pool = ThreadPoolExecutor(_num_workers())
        self._damaged: set[str] = set()

    def __call__(self, index: Tensor) -> Tensor:
        paths = [self.files[i] for i in index.reshape(-1).tolist()]
        pixels = torch.full((len(paths), self.size, self.size, 3), 128, dtype=torch.uint8)
        jobs = ((path, self.size, path) for path in paths)
        for number, result in enumerate(self._pool.map(try_square, jobs)):
            if not isinstance(result, str):
                pixels[number] = torch.from_numpy(result)
            elif paths[number] not in self._damaged:
                self._damaged.add(paths[number])
                warnings.warn(f"{result} A grey picture takes its place.", stacklevel=2)
        return pixels.permute(0, 3, 1, 2)


# -- Hugging Face datasets ------------------------------------------------------------------------


def _open_datasets(config: ImageDataConfig) -> Pair:
    """`hf:NAME`, `hf:imagefolder:FOLDER`, or `hf-stream:...`, decoded here into memory."""
    try:
        import datasets
    except ModuleNotFoundError:
        raise ValueError(
            f"data.path={config.path!r} needs the package datasets: pip install datasets"
        ) from None
    kind, _, rest = config.path.partition(":")
    name, _, folder = rest.partition(":")
    if folder and not Path(folder).is_dir():
        raise ValueError(f"data.path={config.path!r} names a folder that does not exist.")
    options = {"data_dir": folder} if folder else {}
    try:
        found = datasets.load_dataset(name, streaming=kind == "hf-stream", **options)
    except Exception as error:  # the package has many ways to say no
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"datasets cannot load {rest!r}: {reason}") from None
    test_name = next((split for split in TEST if split in found), None)
    train = _read_split(found["train" if "train" in found else next(iter(found))], config, rest)
    if test_name is None:
        return _split(train, None, config)
    return train, _read_split(found[test_name], config, rest)


def _read_split(split: Any, config: ImageDataConfig, name: str) -> ImageSet:
    import datasets

    features = split.features or {}
    image_key = next((k for k, v in features.items() if isinstance(v, datasets.Image)), None)
    label_key = next((k for k, v in features.items() if isinstance(v, datasets.ClassLabel)), None)
    if image_key is None or label_key is None:
        advice = ""
        if name.startswith("imagefolder:"):
            advice = " imagefolder wants class folders of one depth; or name the folder alone."
        raise ValueError(
            f"the data set {name!r} must have an Image and a ClassLabel column, it has "
            f"{', '.join(features) or 'none'}.{advice}"
        )
    # undecoded, so that a damaged picture is skipped and not the end of the pass
    split = split.cast_column(image_key, datasets.Image(decode=False))
    jobs, labels = [], []
    for number, item in enumerate(split):
        if config.max_images and number >= config.max_images:
            break
        entry = item[image_key]
        source = entry["bytes"] if entry["bytes"] is not None else entry["path"]
        jobs.append((source, config.size, f"picture {number} of {name}"))
        labels.append(item[label_key])
    pixels, skipped = collect(iter(jobs), len(jobs), config.size)
    bad = dict(skipped)
    good = [number for number in range(len(jobs)) if number not in bad]
    classes = features[label_key].names
    return ImageSet.from_pixels(
        name, pixels[good], np.array(labels)[good], classes, list(bad.values())
    )


# -- what they share ------------------------------------------------------------------------------


def collect(
    jobs: Iterable[tuple[str | bytes, int, str]], count: int, size: int
) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Decode into one array (count, size, size, 3); also what was wrong, by number."""
    pixels = np.zeros((count, size, size, 3), dtype=np.uint8)
    skipped = []
    # Pillow lets go of Python's lock while it decodes, so threads are enough
    with ThreadPoolExecutor(_num_workers()) as pool:
        for number, result in enumerate(pool.map(try_square, jobs)):
            if isinstance(result, str):
                skipped.append((number, result))
            else:
                pixels[number] = result
    return pixels, skipped


def _num_workers() -> int:
    return max(1, min(8, os.cpu_count() or 1))


def _split(whole: ImageSet, is_test: Tensor | None, config: ImageDataConfig | None = None) -> Pair:
    """Two sets, by the data's own split or by a share of every class."""
    if is_test is None:
        assert config is not None
        is_test = torch.zeros(len(whole), dtype=torch.bool)
        for label in range(len(whole.classes)):
            mine = (whole.labels == label).nonzero()[:, 0]
            count = round(len(mine) * config.held_out)
            count = max(count, 1) if len(mine) > 1 else 0
            is_test[mine[_shuffled(len(mine))[:count]]] = True
    index = torch.arange(len(whole))
    train = whole.subset(index[~is_test], f"{whole.name}, training part")
    return train, whole.subset(index[is_test], f"{whole.name}, held-out part")


def _shuffled(count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def warn_of(skipped: Sequence[str], path: str) -> None:
    """One warning about all files that were left out, with how many and the first few."""
    if skipped:
        shown = " ".join(skipped[:_SHOWN])
        more = f" ... and {len(skipped) - _SHOWN} more." if len(skipped) > _SHOWN else ""
        what = "1 picture" if len(skipped) == 1 else f"{len(skipped)} pictures"
        warnings.warn(f"skipped {what} of {path}: {shown}{more}", stacklevel=3)
