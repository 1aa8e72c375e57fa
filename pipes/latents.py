"""Latents in the place of pixels: what `Decoder` does with a `LatentCache`."""

import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import torch

from ..transforms.entry import Tensors
from ..transforms.entry_rows import pack_rows
from ..transforms.latent_cache import RECORDS, LatentCache
from ..transforms.pixel_sums import row_sums
from . import decode_image
from .decode_fields import CaptionField
from .decode_image import DecodePolicy, probe
from .geometry import Crop
from .image_facts import ImageFacts
from .image_hashes import ImageHashes
from .sample import KEY, URL, Extent, Sample, Stored
from .slot import Slot
from .urls import base_name

HASHES: Final = "image_hashes.bin"
"""Name of the file beside a store's shards in which images' hashes are remembered."""

Size = tuple[int, int]
"""(height, width) in pixels."""


class Region(NamedTuple):
    """What becomes of an image's file, before it is decoded.

    Attributes:
        data: The file's bytes; None where the cache has its latents.
        original: Size of the upright original.
        target: Size that the region gets.
        crop: The region of the original.
        flip: Whether it is mirrored.
        inputs: All that its latents depend on but the encoder; {} without a cache.
        name: Of its entry in the cache.
        hit: Whether the cache has it.
        entry: What the cache has, where it is sent along.
    """

    data: bytes | None
    original: Size
    target: Size
    crop: Crop
    flip: bool
    inputs: Mapping[str, Any] = MappingProxyType({})
    name: str = ""
    hit: bool = False
    entry: Tensors | None = None


class LatentRows:
    """Looks samples up in a cache of latents, in one process.

    Args:
        cache: The cache.
        policy: How images are decoded.
        captions: Where captions are.
    """

    def __init__(self, cache: LatentCache, policy: DecodePolicy, captions: CaptionField) -> None:
        if policy.alpha == "mask":
            raise ValueError(
                'alpha="mask" gives masks of the same crops, which are pixels and not cached: '
                'decode(latents=…) goes with alpha="matte"'
            )
        self.cache = cache
        self.policy = policy
        self.captions = captions
        folder = getattr(cache.store, "folder", None)
        self.hashes = ImageHashes(None if folder is None else os.path.join(folder, HASHES))

    def find(
        self,
        value: Extent | Stored | bytes,
        size: Size | None,
        cut: Callable[[Size, Size], tuple[Crop, bool]],
    ) -> Region:
        """Return what becomes of an image; its bytes are read only where they have to be.

        Args:
            value: The image's field.
            size: Size of the output; None: the image's own.
            cut: Gives the region and whether it is mirrored, for an original and a target.

        Raises:
            DataError: The image is bad data, or too large.
            OSError: It cannot be read.
        """
        facts = self.hashes.known(value)
        known = None
        if facts is not None and facts.height * facts.width <= self.policy.max_pixels:
            known = self._looked_up(facts, size, cut)
            if known.hit:
                return known
        data, found = self.hashes.read(value)
        probe(data, self.policy)
        if known is None or found != facts:  # changed meanwhile, with its times kept
            known = self._looked_up(found, size, cut)
        return known if known.hit else known._replace(data=data)

    def _looked_up(
        self, facts: ImageFacts, size: Size | None, cut: Callable[[Size, Size], tuple[Crop, bool]]
    ) -> Region:
        original = facts.size
        target = size or original
        crop, flip = cut(original, target)
        inputs = self.cache.inputs(
            facts.digest.hex(),
            matte=self.policy.matte if facts.alpha else None,
            icc=self.policy.icc if facts.profile else None,
            crop=(crop.top, crop.left, crop.height, crop.width),
            size=target,
            flip=flip,
            decoder=decode_image.DECODER_VERSION,
            interpolation=decode_image.INTERPOLATION,
        )
        name = self.cache.name_of(inputs)
        hit, entry = self.cache.look(name)
        return Region(None, original, target, crop, flip, inputs, name, hit, entry)

    def add(self, region: Region, sample: Sample, out: Sample, slot: Slot) -> None:
        """Put what was found, and what there is to say of it, into a sample.

        Args:
            region: From `find`.
            sample: As it was read: its captions go with the entry.
            out: The sample with its image decoded; where the entry was found, it gets no pixels.
            slot: Its place in the batch, into which what was found is copied.
        """
        source = f"{base_name(sample[URL])}/{sample[KEY]}"
        about = None if region.hit else self._about(region, sample, out)
        record = self.cache.record(region.name, source, region.hit, about)
        if not region.hit:
            record["pixels"] = row_sums(out["image"])
        out["latents"] = None if region.entry is None else _placed(region.entry, slot)
        out[RECORDS] = record

    def _about(self, region: Region, sample: Sample, out: Sample) -> dict[str, Any]:
        """Return what an entry is to say of itself: enough to train without the originals."""
        crop = out["crop_top_left"].tolist()
        return {
            "field": "latents",
            "target_size": list(region.target),
            "original_size": list(region.original),
            "crop_top_left": crop,
            "flipped": region.flip,
            "key": sample[KEY],
            "url": base_name(sample[URL]),
            "caption": candidates(self.captions, sample),
            "ingredients": self.cache.ingredients(region.inputs),
        }


def _placed(entry: Tensors, slot: Slot) -> Tensors:
    """Return an entry in the batch's own memory, where it fits there."""
    placed = {}
    for name, value in entry.items():
        row = slot.row(("latents", name), tuple(value.shape), value.dtype)
        placed[name] = value if row is None else row.copy_(value)
    return placed


def blank(place: torch.Tensor | None, size: Size) -> torch.Tensor:
    """Return what stands for the pixels of a row that was found: its place, or zeros of no size."""
    if place is not None:
        return place
    return torch.zeros((), dtype=torch.uint8).expand(3, *size)


def finish(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch as the process that trains takes it.

    Where all rows were found there is no ``image``, and ``latents`` are stacked; else the rows of
    ``image`` that were found are zeros.
    """
    records, image = batch[RECORDS], batch["image"]
    if all(record["hit"] for record in records):
        found = batch["latents"]
        packed = pack_rows(found) if isinstance(found, list) else found
        return {**{k: v for k, v in batch.items() if k != "image"}, "latents": packed}
    if isinstance(image, torch.Tensor):
        for row, record in zip(image, records, strict=True):
            if record["hit"]:
                row.zero_()
    return batch


def candidates(captions: CaptionField, sample: Sample) -> list[str]:
    """Return all captions that a sample has, of which one is taken; blank ones keep their places.

    Raises:
        DataError: The field holds no text.
    """
    _, found = captions.candidates(sample)
    none = [] if captions.default is None else [captions.default]
    return none if found is None or (none and not any(found)) else found
