"""The rows of JSON and JSONL files, and where each lies in its file."""

import json
import os
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from .captions import decode_text
from .errors import DataError
from .table import Row

_BOM = b"\xef\xbb\xbf"
_BLANK = re.compile(r"[ \t\r\n]*")


class Scanned(NamedTuple):
    """A row, and where it is: ``size`` bytes from ``start``, the first in ``line``."""

    start: int
    size: int
    line: int
    row: Row


def scan_lines(file: BinaryIO, path: str) -> Iterator[Scanned]:
    """Yield the rows of a JSONL file: an object a line."""
    start = after_bom(file)
    decode = json.JSONDecoder().decode
    for line, data in enumerate(file, 1):
        end = start + len(data)
        text = text_of(data, path, line).strip(" \t\r\n")
        if text:
            try:
                row = decode(text)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {line}: this is no JSON: {error}") from error
            yield Scanned(start, len(data), line, _object(row, path, line))
        start = end


def scan_array(file: BinaryIO, path: str) -> Iterator[Scanned]:
    """Yield the rows of a JSON file: a list of objects, parsed one at a time."""
    data = file.read()
    at = len(_BOM) if data.startswith(_BOM) else 0
    text = text_of(data[at:], path, 1)
    decode = json.JSONDecoder().raw_decode
    here = _skip(text, 0)
    if text[here : here + 1] != "[":
        raise ValueError(
            f"{path}: expected a list of objects, [{{…}}, …], found {text[here : here + 20]!r}"
        )
    at += len(text[: here + 1].encode())
    line, here = 1 + text.count("\n", 0, here), here + 1
    while True:
        begin = _skip(text, here)
        line += text.count("\n", here, begin)
        at += begin - here
        if text[begin : begin + 1] == "]":
            return
        try:
            row, end = decode(text, begin)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {line}: this is no JSON: {error}") from error
        size = len(text[begin:end].encode())
        yield Scanned(at, size, line, _object(row, path, line))
        line += text.count("\n", begin, end)
        here = _skip(text, end)
        line += text.count("\n", end, here)
        at += size + here - end
        if text[here : here + 1] == ",":
            here, at = here + 1, at + 1
        elif text[here : here + 1] != "]":
            raise ValueError(f"{path}, line {line}: expected ',' or ']' behind an object")


def _skip(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    assert found is not None
    return found.end()


def _object(row: Any, path: str, line: int) -> Row:
    if not isinstance(row, dict):
        raise ValueError(
            f"{path}, line {line}: expected an object with named fields, found a "
            f"{type(row).__name__}"
        )
    return row


def after_bom(file: BinaryIO) -> int:
    start = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
    file.seek(start, os.SEEK_SET)
    return start


def text_of(data: bytes, path: str, line: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as bad:
        line += data.count(b"\n", 0, bad.start)
        try:
            decode_text(data)
        except DataError as error:
            raise ValueError(f"{path}, line {line}: {error}") from None
        raise
