"""What the workers make of a sample before it is embedded."""

import json
from collections.abc import Sequence
from typing import Any

import torch

from ..pipes.captions import parse_json
from ..pipes.decode_fields import CaptionField
from ..pipes.decode_image import DecodePolicy, decode
from ..pipes.draws import Draws
from ..pipes.errors import DataError
from ..pipes.sample import UNLOADED, Ref, Sample
from ..pipes.shard_index import image_field

PIXELS = "pixels"
CAPTION = "caption"
COLUMNS = "columns"
IMAGE_FAULT = "image_fault"
TEXT_FAULT = "text_fault"

_DRAWS = Draws(0, Ref(0, 0, 0))


class Prepare:
    """Maps a sample's bytes to what is embedded, and to what is wrong with it.

    ``pixels`` is float32 [3, H, W], what the model's image processor gives, zero where there is no
    image; ``caption`` a str; ``columns`` a JSON list of texts or null; ``image_fault`` and
    ``text_fault`` say what is wrong, or are empty.

    Args:
        processor: The image processor; None where no images are embedded.
        shape: [3, H, W] of what it gives.
        caption: Where the caption is; None where no texts are embedded.
        image: The image's field; None: found by its name.
        columns: Names of values in ``json`` that come along.
        strict: Whether what is wrong is raised as a `DataError`.
    """

    def __init__(
        self,
        processor: Any,
        shape: tuple[int, int, int],
        caption: CaptionField | None,
        *,
        image: str | None = None,
        columns: Sequence[str] = (),
        strict: bool = True,
    ) -> None:
        self.processor = processor
        self.shape = shape
        self.caption = caption
        self.image = image
        self.columns = tuple(columns)
        self.strict = strict

    def __call__(self, sample: Sample) -> Sample:
        pixels, image_fault = torch.zeros(self.shape), ""
        caption, text_fault = "", ""
        if self.processor is not None:
            try:
                pixels = self._pixels(sample)
            except DataError as error:
                image_fault = self._fault(error)
        if self.caption is not None:
            try:
                caption = self._caption(self.caption, sample)
            except DataError as error:
                text_fault = self._fault(error)
        return {
            PIXELS: pixels,
            CAPTION: caption,
            COLUMNS: self._columns(sample),
            IMAGE_FAULT: image_fault,
            TEXT_FAULT: text_fault,
        }

    def _fault(self, error: DataError) -> str:
        if self.strict:
            raise error
        return str(error)

    def _pixels(self, sample: Sample) -> torch.Tensor:
        fields = [name for name, value in sample.items() if isinstance(value, UNLOADED)]
        name = self.image or image_field(fields)
        if name is None or name not in sample:
            wanted = "image" if self.image is None else f"field {self.image!r}"
            raise DataError(f"has no {wanted}; its fields are: {', '.join(fields) or 'none'}")
        policy = DecodePolicy()
        try:
            image = decode(sample[name], policy)
            height, width = image.shape[1:]
            # Where the shorter side is resized to the model's, the longer one grows with it.
            ratio = max(height, width) / min(height, width)
            if ratio * self.shape[1] * self.shape[2] > policy.max_pixels:
                raise DataError(f"an image of {height}x{width} pixels is too narrow to be resized")
        except DataError as error:
            raise DataError(f"field {name!r}: {error}") from error
        made = self.processor(images=image, return_tensors="pt", input_data_format="channels_first")
        pixels: torch.Tensor = made["pixel_values"][0]
        return pixels

    def _caption(self, field: CaptionField, sample: Sample) -> str:
        caption = field.read(sample, _DRAWS)[1]
        if caption is None:
            fields = ", ".join(name for name in sample if not name.startswith("__"))
            raise DataError(
                f"has no caption; its fields are: {fields}; name its field with --caption, or give "
                "--caption_default ''"
            )
        return caption

    def _columns(self, sample: Sample) -> str:
        if not self.columns:
            return "[]"
        try:
            record = parse_json(sample["json"]) if "json" in sample else {}
        except DataError:
            record = {}
        values = [record.get(name) for name in self.columns]
        return json.dumps([v if v is None or isinstance(v, str) else json.dumps(v) for v in values])
