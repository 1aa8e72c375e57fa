"""Decode the fields that are not images."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from ..transforms.entry_bytes import read_entry
from .captions import (
    CAPTIONS,
    caption_candidates,
    decode_text,
    parse_json,
    pick_caption,
    pick_outcomes,
    read_json_field,
)
from .draws import Draws
from .entry_field import SAFETENSORS
from .errors import DataError, MissingData
from .outcomes import Outcomes
from .read import read_field
from .sample import UNLOADED, Extent, Sample, Stored, Typed

ARRAYS = ("npy", "img_emb", "text_emb")
"""Extensions of fields that hold the bytes of an ``.npy`` file."""

PICKLES = ("pt", "pth")
"""Extensions of what torch.save writes."""

NO_PICKLE = (
    "is what torch.save writes, a pickle: loading one runs whatever code stands in it, so it is "
    "never decoded; write the array with numpy.save as .npy, or .select() the other fields"
)


def decode_field(name: str, value: Extent | Stored | bytes) -> Any:
    """Return a field's value, decoded by its extension.

    ``json`` gives what it holds, ``npy``, ``img_emb`` and ``text_emb`` an array, ``cls`` and
    ``index`` an int, ``txt`` and ``text`` a str, ``safetensors`` tensors by name, anything else
    bytes. A `Typed` field gives its own value. Nothing is ever unpickled.

    Raises:
        DataError: The bytes are not what the extension says, or are a pickle of torch's.
    """
    if isinstance(value, Typed):
        try:
            return value.value()
        except DataError as error:
            raise type(error)(f"field {name!r}: {error}") from error
    ending = kind(name)
    if ending in PICKLES:
        raise DataError(f"field {name!r} {NO_PICKLE}")
    data = read_field(name, value)
    try:
        if ending in ("txt", "text", "caption"):
            return decode_text(data)
        if ending == "json":
            return json.loads(decode_text(data))
        if ending in ("cls", "index"):
            return int(data)
        if ending in ARRAYS:
            return _array(data)
        if ending == SAFETENSORS:
            return read_entry(bytearray(data))
    except (ValueError, RecursionError) as error:
        raise DataError(f"field {name!r} is no {ending}: {error}") from error
    return data


def kind(name: str) -> str:
    """Return the extension by which a field is decoded: the last dotted part of its name."""
    return name.rpartition(".")[2].lower()


def _array(data: bytes) -> np.ndarray:
    """Return the array in the bytes of an ``.npy`` file; a ValueError where there is none."""
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:
        # At a damaged header numpy raises nearly anything: TokenError, MemoryError, EOFError, ...
        raise ValueError(str(error) or type(error).__name__) from error
    if not isinstance(array, np.ndarray):
        raise ValueError("it is an archive, as numpy.savez writes it, and no single array")
    return array


@dataclass(frozen=True)
class CaptionField:
    """Where the caption is, and which of several is taken; see `Decoder`."""

    name: str | None
    pick: Literal["first", "random"] | Sequence[float]
    lines: bool
    default: str | None

    def read(self, sample: Sample, draws: Draws) -> tuple[str | None, str | None]:
        """Return the field that the caption is (None where it is part of a field), and the caption.

        Raises:
            DataError: The named field is missing, or holds no text.
        """
        field, candidates = self.candidates(sample)
        if candidates is None:
            return field, self.default
        caption = pick_caption(candidates, self.pick, draws=draws)
        return field, caption or self.default or caption

    def outcomes(self, sample: Sample) -> Outcomes[str] | None:
        """Return the captions that `read` may take, each with its weight; None: there is none.

        Raises:
            DataError: As `read`.
        """
        _, candidates = self.candidates(sample)
        if candidates is None:
            return None if self.default is None else [(Fraction(1), self.default)]
        found = pick_outcomes(candidates, self.pick)
        return [(weight, caption or self.default or caption) for weight, caption in found]

    def candidates(self, sample: Sample) -> tuple[str | None, list[str] | None]:
        """Return the field (None: it is not the caption alone), and its captions, if it is there.

        Raises:
            DataError: As `read`.
        """
        field, inner = self._find(sample)
        if field is None:
            return None, None
        try:
            value = _caption_value(field, sample[field], inner)
            if inner is not None:
                if inner not in value and self.default is not None:
                    return None, None
                value = read_json_field(value, inner)
            candidates = caption_candidates(value, lines=self.lines)
        except MissingData:
            if self.default is not None:
                return field, None
            raise
        except DataError as error:
            if str(error).startswith(f"field {field!r}"):
                raise
            raise DataError(f"field {field!r}: {error}") from error
        return (field if inner is None else None), candidates

    def _find(self, sample: Sample) -> tuple[str | None, str | None]:
        """Return the field and, in a JSON object, the name within it."""
        if self.name is None:
            return next((name for name in CAPTIONS if name in sample), None), None
        field, inner = find_field(self.name, sample)
        if field is not None or self.default is not None:
            return field, inner
        fields = ", ".join(f for f in sample if not f.startswith("__"))
        raise DataError(f"has no caption {self.name!r}; its fields are: {fields or 'none'}")


def find_field(name: str, sample: Sample) -> tuple[str | None, str | None]:
    """Return the field that ``name`` means, and the name within it.

    That is ``("txt", None)`` for ``txt``; for ``json.text`` it is ``("json", "text")`` where the
    sample has no field ``json.text`` itself; and ``(None, None)`` where it has neither.
    """
    if name in sample:
        return name, None
    field, _, inner = name.rpartition(".")
    while field:
        if field in sample:
            return field, inner
        field, _, more = field.rpartition(".")
        inner = f"{more}.{inner}"
    return None, None


def _caption_value(field: str, value: Any, inner: str | None) -> Any:
    """Return what `caption_candidates` takes; an object where ``inner`` names a field in it."""
    if isinstance(value, Typed):
        value = decode_field(field, value)
    elif isinstance(value, UNLOADED):
        parsed = inner is None and kind(field) == "json"
        value = decode_field(field, value) if parsed else read_field(field, value)
    if inner is not None:
        return parse_json(value)
    if not isinstance(value, str | bytes | list | dict):
        raise DataError(f"caption must be text, got {type(value).__name__} {value!r:.80}")
    return value
