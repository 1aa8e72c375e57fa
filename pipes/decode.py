"""Begin the work half: images to uint8 tensors, texts to str."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from ..transforms.latent_cache import LatentCache
from .captions import check_pick
from .crops import Crops
from .decode_fields import ARRAYS, CaptionField, decode_field, kind
from .decode_image import DecodePolicy, decode, probe
from .decode_pixels import DecodedImages
from .draws import Draws
from .entry_field import SAFETENSORS, read_field_entry
from .errors import DataError
from .geometry import Crop, crop_top_left
from .latents import LatentRows, Region, blank, finish
from .pipe import Pipe
from .read import read_value
from .sample import UNLOADED, Extent, Sample, Stored, Typed
from .shard_index import image_field
from .slot import Slot
from .work import Decoding


class Decoder(Decoding):
    """Yields samples with their image and caption decoded (``.decode(…)``). The work half begins.

    ``image`` is uint8 [3, H, W], RGB, upright; ``caption`` is str. Other fields are decoded by
    their extension: ``json`` to what it holds, ``npy`` to an array (never a pickle), ``cls`` to
    int, ``safetensors`` to a dict of tensors, the rest stays bytes. ``.select()`` keeps fields that
    nobody needs from being read.

    The entries of an `EntryStore` are decoded without their images, under the name that they have
    in themselves, such as ``latents``; the sizes that were given to the bucketer when they were
    made must be those that it is given now.

    Where a bucketer stands before, or ``size`` is given, the image is resized to cover that size
    with antialiasing, cropped, flipped, and written straight into the batch's tensor. With it come
    ``original_size``, ``crop_top_left``, ``target_size`` (int64 [2], height before width, as SDXL's
    micro-conditioning wants them, for the crop really made) and ``flipped`` (bool).

    Args:
        source: The order half.
        size: (height, width) of all images, or one number for a square, where no bucketer stands
            before. None: each its own, in a list.
        image: Name of the image's field (default: found by extension).
        caption: Name of the caption's field; ``"json.text"`` is field ``text`` of a JSON object.
            Default: the first of ``caption``, ``txt``, ``text`` that the sample has.
        caption_pick: Which of several captions: ``"first"``, ``"random"``, or a weight for each.
        caption_lines: Whether each line of a text is a caption of its own.
        caption_default: The caption of a sample that has none, instead of an error where
            ``caption`` is named, or of no ``caption`` field.
        crop: ``"center"``, ``"random"``, or ``"resized"``: a region of random area and aspect ratio
            as torchvision's RandomResizedCrop draws it.
        scale: For ``"resized"``: least and largest share of the original's area.
        ratio: For ``"resized"``: least and largest width / height; None: the target's own.
        flip: Probability of a mirror image.
        matte: Colour (red, green, blue) that shows through transparent pixels.
        alpha: ``"matte"`` composites on the matte; ``"mask"`` gives the opacity as field ``mask``,
            uint8 [1, H, W], too.
        icc: Convert images with a colour profile to sRGB.
        max_pixels: A larger image is bad data (a decompression bomb).
        variants: Number of fixed crops of each sample, of which each visit draws one: what is made
            of them can then be kept in a cache, filled beforehand. A crop depends on its number, on
            the sample's key and the base name of its shard alone. Flips are drawn apart, at their
            exact probability. None: crops are new at each visit. Centre crops need none.
        keep_in_memory: Bytes of decoded images that each worker keeps, so that those of a small
            data set are decoded once (4 bytes a pixel, of JPEGs at the scale they are needed in).
            It changes no pixel.
        latents: A `LatentCache`: samples get ``latents`` from there, and are not decoded; those
            that it lacks come with their pixels, and are encoded by ``on_device(…, cache.fill)``.
    """

    def __init__(
        self,
        source: Pipe,
        size: int | tuple[int, int] | None = None,
        *,
        image: str | None = None,
        caption: str | None = None,
        caption_pick: Literal["first", "random"] | Sequence[float] = "first",
        caption_lines: bool = False,
        caption_default: str | None = None,
        crop: Literal["center", "random", "resized"] = "center",
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] | None = None,
        flip: float = 0.0,
        matte: tuple[int, int, int] = (255, 255, 255),
        alpha: Literal["matte", "mask"] = "matte",
        icc: bool = True,
        max_pixels: int = 178_956_970,
        keep_in_memory: int = 0,
        variants: int | None = None,
        latents: LatentCache | None = None,
    ) -> None:
        check_pick(caption_pick)
        self.variants = variants
        self.crops = Crops(crop, scale, ratio, flip, variants)
        self.source: Pipe = source
        self.size = size
        self.fixed = None if size is None else _sides(size)
        self.image = image
        self.caption = caption
        self.caption_pick = caption_pick
        self.caption_lines = caption_lines
        self.caption_default = caption_default
        self.crop = crop
        self.scale = scale
        self.ratio = ratio
        self.flip = flip
        self.matte = matte
        self.alpha = alpha
        self.icc = icc
        self.max_pixels = max_pixels
        self.keep_in_memory = keep_in_memory
        self.kept = DecodedImages(keep_in_memory) if keep_in_memory else None
        self.policy = DecodePolicy(matte=matte, alpha=alpha, icc=icc, max_pixels=max_pixels)
        self.captions = CaptionField(caption, caption_pick, caption_lines, caption_default)
        self.latents = latents
        self.rows = None if latents is None else LatentRows(latents, self.policy, self.captions)

    def arguments(self) -> dict[str, Any]:
        # What is kept in memory is no difference; of a cache, the encoder is.
        own = {k: v for k, v in super().arguments().items() if k != "keep_in_memory"}
        own["latents"] = None if self.latents is None else self.latents.digest
        return own if self.crops.only is None else {**own, "at_variant": self.crops.only}

    def image_size(self) -> tuple[int, int] | None:
        return self.fixed

    def masks(self) -> bool:
        return self.alpha == "mask"

    def check(self, bucketed: bool) -> None:
        if bucketed and self.fixed is not None:
            raise ValueError("decode(size=…) stands behind a bucketer, which gives sizes itself")
        if not bucketed and self.fixed is None and self.crop != "center":
            raise ValueError(f"decode(crop={self.crop!r}) needs size=…, or a bucketer before it")
        if self.rows is not None:
            self.rows.hashes.refresh()  # here, so that forked workers share them

    def finish(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch if self.rows is None else finish(batch)

    def begin(self, sample: Sample) -> Sample:
        small = {
            name: decode_field(name, value)
            for name, value in sample.items()
            if isinstance(value, UNLOADED)
            and name != self.image
            and (isinstance(value, Typed) or kind(name) in ARRAYS)
        }
        return {**sample, **small} if small else sample

    def work(self, sample: Sample, draws: Draws, slot: Slot) -> Sample:
        fields = [name for name, value in sample.items() if isinstance(value, UNLOADED)]
        name = self.image or image_field(fields)
        if name is not None and name not in sample:
            raise DataError(f"has no field {name!r}; its fields are: {', '.join(fields) or 'none'}")
        taken, caption = self.captions.read(sample, draws)
        out = {
            k: v
            for k, v in sample.items()
            if k != taken and not k.startswith("__image") and not isinstance(v, UNLOADED)
        }
        entries = []
        for field in fields:
            if field == name:
                self._image(field, sample, draws, slot, out)
            elif kind(field) == SAFETENSORS and not isinstance(sample[field], Typed):
                entries.append(field)
            elif field != taken:
                out[field] = decode_field(field, sample[field])
        for field in entries:
            self._entry(field, sample[field], slot, out)
        if caption is not None:
            out["caption"] = caption
        return out

    def _image(self, field: str, sample: Sample, draws: Draws, slot: Slot, out: Sample) -> None:
        try:
            found = self._region(sample[field], slot.size, draws)
            target = found.target
            mask = slot.mask
            if self.masks() and mask is None:
                mask = torch.empty((1, *target), dtype=torch.uint8)
            whole = slot.size is None
            out["image"] = (
                blank(slot.image, target)
                if found.data is None
                else decode(
                    found.data,
                    self.policy,
                    crop=None if whole else found.crop,
                    out=slot.image,
                    size=None if whole else target,
                    flip=found.flip,
                    mask_out=mask,
                    kept=self.kept,
                )
            )
        except DataError as error:
            raise DataError(f"field {field!r}: {error}") from error
        if mask is not None:
            out["mask"] = mask
        top_left = crop_top_left(found.crop, found.original, target, found.flip)
        out["original_size"] = np.array(found.original, np.int64)
        out["crop_top_left"] = np.array(top_left, np.int64)
        out["target_size"] = np.array(target, np.int64)
        out["flipped"] = found.flip
        if self.rows is not None:
            self.rows.add(found, sample, out, slot)

    def _region(
        self, value: Extent | Stored | bytes, size: tuple[int, int] | None, draws: Draws
    ) -> Region:
        """Return the image's bytes, unless its latents are cached, and what becomes of them."""
        if self.rows is not None:
            return self.rows.find(value, size, partial(self._crop, draws=draws))
        data = read_value(value)
        original = probe(data, self.policy)
        target = size or original
        return Region(data, original, target, *self._crop(original, target, draws))

    def _entry(self, field: str, value: Extent | Stored | bytes, slot: Slot, out: Sample) -> None:
        try:
            made = read_field_entry(field, value, slot, slot.size)
            name = next(iter(made))
            if name in out:
                raise DataError(f"its entry would be called {name!r}, as another field is")
        except DataError as error:
            raise DataError(f"field {field!r}: {error}") from error
        for key, part in made.items():
            out.setdefault(key, part)  # an image's own sizes, where there is one, are those

    def _crop(
        self, original: tuple[int, int], target: tuple[int, int], draws: Draws
    ) -> tuple[Crop, bool]:
        """Return which region of the original becomes the image, and whether it is mirrored."""
        return self.crops.draw(original, target, draws)

    def at_variant(self, variant: int | None, flip: bool = False) -> "Decoder":
        """Return this pipe with the crop and the flip of every visit fixed, to fill a cache.

        Args:
            variant: Number of the crop, below ``variants``; None with ``crop="center"``.
            flip: Whether the image is mirrored.

        Raises:
            ValueError: No visit has this crop and flip, or ``variants`` is None.
        """
        fixed = copy.copy(self)
        fixed.crops = self.crops.at(variant, flip)
        return fixed


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) that ``size`` means, or refuse it."""
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(isinstance(s, int) and s >= 1 for s in sides):
        raise ValueError(
            f"size is (height, width) in pixels, at least 1, or one side; got {size!r}"
        )
    return sides
