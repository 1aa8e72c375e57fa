"""The files that a sample becomes in a shard."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..pipes.captions import caption_candidates, decode_text, parse_json
from ..pipes.decode_image import DecodePolicy, decode
from ..pipes.errors import DataError, MissingData
from ..pipes.image_size import image_size
from ..pipes.open_image import open_image, quiet, reading
from ..pipes.read import read_field
from ..pipes.sample import KEY, UNLOADED, Sample
from ..pipes.shard_index import image_field

ENDINGS = {
    "JPEG": "jpg",
    "MPO": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "AVIF": "avif",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
}
"""Pillow's name of a format to the ending that readers of shards know it by."""

SAME = {"jpeg": "jpg", "jfif": "jpg", "tiff": "tif"}

Members = list[tuple[str, bytes]]


def read_members(
    sample: Sample, *, caption_default: str | None = None, columns: Sequence[str] | None = None
) -> Members:
    """Return the (ending, bytes) of a sample's files: its image first, ``txt``, ``json``, others.

    The image's bytes are as they are, and its ending is that of the format that they begin with.
    Fields of a tar stay what they are; columns of a manifest go into ``json``, and with them
    ``key``, the sample's key in its source, and ``captions`` where there are several.

    Args:
        sample: Its fields are read here.
        caption_default: The caption of a sample that has none.
        columns: Which columns go into ``json``; None: all.

    Raises:
        DataError: There is no image, no caption where there should be one, or a value that JSON
            cannot hold.
        OSError: A file cannot be read.
    """
    fields = {name: value for name, value in sample.items() if not name.startswith("__")}
    image = image_field(list(fields))
    if image is None:
        raise DataError(f"has no image; its fields are: {', '.join(fields) or 'none'}")
    data = read_field(image, fields.pop(image))
    members = [(image_ending(image, data), data)]
    record: dict[str, Any] = {"key": sample[KEY]}
    if "txt" in fields:  # of a tar
        members.append(("txt", read_field("txt", fields.pop("txt"))))
    elif "caption" in fields and not isinstance(fields["caption"], bytes):
        texts = _captions(fields.pop("caption"), caption_default)
        members.append(("txt", texts[0].encode()))
        if len(texts) > 1:
            record["captions"] = texts
    elif caption_default is not None and "text" not in fields:
        members.append(("txt", caption_default.encode()))
    others: Members = []
    for name, value in fields.items():
        if not isinstance(value, UNLOADED):
            if columns is None or name in columns:
                record[name] = _plain(name, value)
        elif name == "json":
            record = {**record, **parse_json(read_field(name, value))}
        elif isinstance(value, bytes):
            raise DataError(_no_json(name, value))
        else:
            others.append((name, read_field(name, value)))
    text = json.dumps(record, ensure_ascii=False)
    members += [("json", text.encode("utf-8", "backslashreplace")), *others]
    endings = [ending for ending, _ in members]
    if len(set(endings)) < len(endings):
        raise DataError(f"field {image!r} is a {endings[0]}, and there is a field of that name too")
    return members


def image_ending(field: str, data: bytes) -> str:
    """Return the ending for an image: the field's own where it is right, else the format's.

    Raises:
        DataError: It is no image, or in a format that readers of shards do not know.
    """
    with quiet(), reading():
        found = open_image(data)
        kind = str(found.format)
        found.close()
    if kind not in ENDINGS:
        raise DataError(
            f"field {field!r} is a {kind} image, which has no place in a shard: convert it to one "
            f"of {', '.join(sorted(set(ENDINGS.values())))}"
        )
    first, dot, last = field.rpartition(".")
    last = last.lower()
    return f"{first}{dot}{last if SAME.get(last, last) == ENDINGS[kind] else ENDINGS[kind]}"


def check_image(data: bytes, whole: bool) -> None:
    """Raise a DataError at an image that cannot be decoded, or whose header cannot be read.

    Args:
        data: The file's bytes.
        whole: Whether all pixels are decoded, else the header alone.
    """
    if whole:
        decode(data, DecodePolicy())
    else:
        image_size(data)


def _captions(value: Any, default: str | None) -> list[str]:
    """Return the captions that are not blank; at least one."""
    try:
        if isinstance(value, UNLOADED):
            value = decode_text(read_field("caption", value))
        texts = [text for text in caption_candidates(value) if text]
    except MissingData:
        if default is None:
            raise
        texts = []
    if not texts and default is None:
        raise MissingData("its caption is empty: write one, or give --caption_default ''")
    return texts or [default or ""]


def _plain(name: str, value: Any) -> Any:
    """Return what JSON has for a value: null for what is no number, ISO 8601 for dates."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(name, inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(name, inner) for inner in value]
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if hasattr(value, "tolist"):
        return _plain(name, value.tolist())
    if isinstance(value, bytes | bytearray):
        raise DataError(_no_json(name, value))
    return str(value)  # Decimal, UUID, timedelta


def _no_json(name: str, value: object) -> str:
    return (
        f"column {name!r} has {type(value).__name__}, which JSON cannot hold; name the columns "
        "that shall come along with --columns"
    )
