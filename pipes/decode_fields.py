"""Decode the fields that are not images."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .captions import choose_caption, decode_text
from .draws import Draws
from .errors import DataError
from .sample import Extent, Sample

CAPTIONS = ("caption", "txt", "text")


def decode_field(name: str, extent: Extent) -> Any:
    """Return a field's value, decoded by its extension.

    ``json`` gives what it holds, ``npy`` an array, ``cls`` and ``index`` an int, ``txt`` and
    ``text`` a str, anything else bytes. Nothing is ever unpickled.

    Raises:
        DataError: The bytes are not what the extension says.
    """
    data = extent.read()
    kind = name.rpartition(".")[2].lower()
    try:
        if kind in ("txt", "text", "caption"):
            return decode_text(data)
        if kind == "json":
            return json.loads(decode_text(data))
        if kind in ("cls", "index"):
            return int(data)
        if kind == "npy":
            return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"field {name!r} is no {kind}: {error}") from error
    return data


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
        field, inner = self._find(sample)
        if field is None:
            return None, self.default
        try:
            value = sample[field]
            caption = choose_caption(
                value.read() if isinstance(value, Extent) else value,
                pick=self.pick,
                lines=self.lines,
                draws=draws,
                json_field=inner,
            )
        except DataError as error:
            raise DataError(f"field {field!r}: {error}") from error
        if not caption and self.default is not None:
            caption = self.default
        return (field if inner is None else None), caption

    def _find(self, sample: Sample) -> tuple[str | None, str | None]:
        """Return the field and, in a JSON object, the name within it."""
        if self.name is None:
            return next((name for name in CAPTIONS if name in sample), None), None
        if self.name in sample:
            return self.name, None
        field, _, inner = self.name.rpartition(".")
        while field:
            if field in sample:
                return field, inner
            field, _, more = field.rpartition(".")
            inner = f"{more}.{inner}"
        if self.default is not None:
            return None, None
        fields = ", ".join(f for f in sample if not f.startswith("__"))
        raise DataError(f"has no caption {self.name!r}; its fields are: {fields or 'none'}")
