"""Brace expansion, as bash has it."""

import itertools
import re
from collections.abc import Iterable, Iterator

_INT_RANGE = re.compile(r"(-?[0-9]+)\.\.(-?[0-9]+)(?:\.\.(-?[0-9]+))?")
_CHAR_RANGE = re.compile(r"([A-Za-z])\.\.([A-Za-z])(?:\.\.(-?[0-9]+))?")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


def expand_braces(pattern: str) -> Iterator[str]:
    """Yield the strings that bash makes of ``pattern`` by brace expansion, leftmost brace slowest.

    Braces that bash leaves alone (without a partner, or with neither comma nor range between them)
    come out as they are. A backslash is dropped, and the character behind it taken as it is.
    """
    return (_ESCAPE.sub(r"\1", text) for text in _expand(pattern))


def _expand(pattern: str) -> Iterator[str]:
    for at, char in _unescaped(pattern):
        if char != "{":
            continue
        inner = _inside(pattern, at)
        choices = None if inner is None else _choices(inner)
        if inner is not None and choices is not None:
            after = pattern[at + len(inner) + 2 :]
            for choice in choices:
                for rest in _expand(after):
                    yield pattern[:at] + choice + rest
            return
    yield pattern


def _unescaped(text: str, start: int = 0) -> Iterator[tuple[int, str]]:
    """Yield the place and the character of all that stands behind no backslash."""
    at = start
    while at < len(text):
        if text[at] == "\\":
            at += 1
        else:
            yield at, text[at]
        at += 1


def _inside(pattern: str, opening: int) -> str | None:
    """Return what stands between the brace at ``opening`` and its partner, or None without one."""
    depth = 0
    for at, char in _unescaped(pattern, opening):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return pattern[opening + 1 : at]
    return None


def _choices(inner: str) -> Iterable[str] | None:
    """Return what the braces around ``inner`` stand for, or None where they are no expression."""
    if found := _INT_RANGE.fullmatch(inner):
        return _numbers(*found.groups())
    if found := _CHAR_RANGE.fullmatch(inner):
        first, last, step = found.groups()
        # Upper to lower case passes through the signs between them, a backslash among them.
        return ("\\\\" if c == 92 else chr(c) for c in _steps(ord(first), ord(last), step))
    parts = _split_commas(inner)
    return itertools.chain.from_iterable(map(_expand, parts)) if len(parts) > 1 else None


def _numbers(first: str, last: str, step: str | None) -> Iterable[str]:
    padded = any(len(text.lstrip("-")) > 1 and text.lstrip("-")[0] == "0" for text in (first, last))
    width = max(len(first), len(last)) if padded else 0
    return (f"{number:0{width}d}" for number in _steps(int(first), int(last), step))


def _steps(first: int, last: int, step: str | None) -> range:
    # As bash has it: the sign of the step is of no account, and a step of 0 is 1.
    size = abs(int(step or 1)) or 1
    return range(first, last + 1, size) if first <= last else range(first, last - 1, -size)


def _split_commas(inner: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for at, char in _unescaped(inner):
        depth += (char == "{") - (char == "}")
        if char == "," and depth == 0:
            parts.append(inner[start:at])
            start = at + 1
    return [*parts, inner[start:]]
