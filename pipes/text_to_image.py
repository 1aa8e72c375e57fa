"""A data set for text-to-image training, in one call."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from .errors import DataError
from .manifest import ManifestReader
from .map import takes_rng
from .pipe import Pipe
from .sample import Sample

KEEP_IN_MEMORY = 256 << 20
"""Bytes of decoded images that each worker may keep: about 64 of a megapixel."""


def text_to_image_dataset(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    model_transform: Callable[..., Any] | None = None,
    *,
    batch_size: int = 1,
    resolution: int | Sequence[int] = 512,
    size: int | tuple[int, int] | None = None,
    crop: Literal["center", "random", "resized"] = "center",
    flip: float = 0.0,
    image_transform: Callable[..., Any] | None = None,
    caption_transform: Callable[..., str] | None = None,
    shuffle_caption: float = 0.0,
    drop_caption: float = 0.0,
    prefix: str = "",
    suffix: str = "",
    trigger: str = "",
    caption_pick: Literal["first", "random"] | Sequence[float] = "random",
    caption_default: str | None = None,
    image: str | None = None,
    caption: str | Sequence[str] | None = None,
    image_dir: str | os.PathLike[str] | None = None,
    split: str | None = None,
    splits: Mapping[str, float] | None = None,
    lanes: int = 1,
    repeat: bool = True,
    seed: int = 0,
    shuffle: bool = True,
    keep_in_memory: int = KEEP_IN_MEMORY,
    cache: str | None = None,
    cache_size: str | int | None = "100GB",
    storage_options: Mapping[str, Any] | None = None,
) -> Pipe:
    """Return the pipe of a manifest or folder of images and texts, up to batches for a model.

    ``text_to_image_dataset("data.tsv", batch_size=4).loader(num_workers=4)`` gives batches of
    ``image`` (uint8 [B, 3, H, W]) and ``caption`` (list of str). What belongs to the data stands
    apart from what belongs to the model: images are cropped and flipped, then go through
    ``image_transform``; captions get their affixes, are shuffled and dropped, then go through
    ``caption_transform``; the batch goes through ``model_transform`` last. The graph is what
    `ManifestReader` and the methods of `Pipe` make, written out, and can be gone on with: ``.map``,
    ``.transform``, ``.preview(n)``, ``.loader(…)``. The proposal is that of torchtune (RFC #2140).

    Args:
        path: A manifest, a folder, or several; see `ManifestReader`.
        model_transform: Takes the batch, a dict, and returns the model's input, a dict.
        batch_size: Samples per batch.
        resolution: Side in pixels of the square whose area the images get, in buckets by aspect
            ratio: nothing but a few pixels is cropped away. Several: see `AspectRatioBucketer`.
        size: One (height, width) for all images instead, or one number for a square.
        crop: Which part of an image that does not fit; see `Decoder`.
        flip: Probability of a mirror image.
        image_transform: Takes an image, uint8 [3, H, W], and returns one of the same shape for all
            of a batch, such as a torchvision v2 chain.
        caption_transform: Takes a caption and returns one.
        shuffle_caption: Probability that the comma-separated parts of a caption are shuffled.
        drop_caption: Probability that a caption becomes "".
        prefix: Put directly in front of each caption.
        suffix: Put directly behind.
        trigger: A phrase put in front of all, unless the caption already has it; where there are no
            captions at all, it is the caption.
        caption_pick: Which of several captions.
        caption_default: The caption of an image that has none; without it that is an error.
        image: The image's column; see `ManifestReader`.
        caption: The caption's column, or several; ``()``: batches without captions.
        image_dir: Folder or URL that images are relative to.
        split: Which split: of ``splits``, or of those that the data has.
        splits: Name to fraction, such as ``{"train": 0.9, "val": 0.1}``; see `ManifestReader`.
        lanes: Number of lanes; see `Lanes`.
        repeat: Whether passes follow each other; False for evaluation.
        seed: Seed of the order and of every random draw.
        shuffle: Whether rows come in a random order.
        keep_in_memory: Bytes of decoded images that each worker may keep, so that a few photographs
            are decoded once. Of more images than could fit none are kept.
        cache: Folder of the cache.
        cache_size: Most that the files of URLs may take in it; see `ManifestReader`.
        storage_options: What fsspec's filesystem takes; see `ManifestReader`.

    Raises:
        FileNotFoundError: There is nothing at ``path``.
        ValueError: A row cannot be parsed, there are no captions and nothing says what to do, or
            arguments do not fit; the message says which.
    """
    reader = ManifestReader(
        path,
        image=image,
        caption=caption,
        image_dir=image_dir,
        split=split,
        splits=splits,
        seed=seed,
        shuffle=shuffle,
        cache=cache,
        cache_size=cache_size,
        storage_options=storage_options,
    )
    if size is None:
        pipe = reader.bucket_by_aspect_ratio(resolution, batch_size)
    else:
        pipe = reader.batch(batch_size)
    captioned = bool(reader.table.map.captions)
    if not captioned and trigger:
        captioned, caption_default, trigger = True, trigger, ""
    elif not captioned and caption_default is None and caption is None:
        raise ValueError(
            f"{path} has no captions: no image has a text file of its name beside it. Write them "
            "(photo.txt for photo.jpg), or give caption_default='a photograph' as the caption of "
            "all, or caption=() for batches without captions"
        )
    pipe = pipe.lanes(lanes, repeat=repeat).decode(
        size,
        crop=crop,
        flip=flip,
        caption_pick=caption_pick,
        caption_default=caption_default,
        keep_in_memory=keep_in_memory
        if _fits(len(reader.table), size, resolution, keep_in_memory)
        else 0,
    )
    if image_transform is not None:
        pipe = pipe.map(_on("image", image_transform))
    if captioned or caption_default is not None:
        pipe = _with_captions(pipe, (prefix, suffix, trigger), shuffle_caption, drop_caption)
        if caption_transform is not None:
            pipe = pipe.map(_on("caption", caption_transform))
    elif prefix or suffix or caption_transform is not None:
        raise ValueError(
            f"{path} has no captions to change: write them, or give caption_default or trigger"
        )
    return pipe if model_transform is None else pipe.transform(model_transform)


def _fits(
    rows: int, size: int | tuple[int, int] | None, resolution: int | Sequence[int], limit: int
) -> bool:
    """Return whether so many images may fit: decoded at no more than the size that they get."""
    sides = size if size is not None else resolution
    least = sides if isinstance(sides, int) else min(sides)
    return rows * 4 * least * least <= limit


def _with_captions(pipe: Pipe, affixes: tuple[str, str, str], shuffle: float, drop: float) -> Pipe:
    prefix, suffix, trigger = affixes
    if shuffle:  # before the affixes, which keep their places
        pipe = pipe.shuffle_caption(p=shuffle)
    if prefix or suffix or trigger:
        pipe = pipe.affix_caption(prefix=prefix, suffix=suffix, trigger=trigger)
    return pipe.drop_caption(drop) if drop else pipe


def _on(field: str, fn: Callable[..., Any]) -> Callable[..., Sample]:
    """Return the function of a sample that applies ``fn`` to one of its fields."""
    return partial(_apply_with_rng if takes_rng(fn) else _apply, field, fn)


def _apply(field: str, fn: Callable[..., Any], sample: Sample) -> Sample:
    return {**sample, field: fn(_value(field, sample))}


def _apply_with_rng(field: str, fn: Callable[..., Any], sample: Sample, rng: Any) -> Sample:
    return {**sample, field: fn(_value(field, sample), rng=rng)}


def _value(field: str, sample: Sample) -> Any:
    if field not in sample:
        raise DataError(f"has no {field}")
    return sample[field]
