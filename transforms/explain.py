"""What has changed, in plain words."""

from collections.abc import Iterator, Mapping
from typing import Any

Difference = tuple[str, Any, Any]
"""(dotted name of an ingredient, what it was, what it is); None where there was or is none."""


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Return in which ingredients two entries differ, objects within them taken apart."""
    before, after = dict(_flat(was)), dict(_flat(now))
    return [
        (name, before.get(name), after.get(name))
        for name in dict.fromkeys([*after, *before])
        if before.get(name) != after.get(name)
    ]


def in_words(found: list[Difference], words: Mapping[str, str]) -> str:
    """Return a sentence that names what differs.

    Args:
        found: From `differences`.
        words: What ingredients are called.
    """
    parts = []
    for name, was, now in found:
        called = f"{words[name]} ({name})" if name in words else name
        parts.append(f"{called} was {_short(was)}, and is {_short(now)}")
    return "; ".join(parts) or "the entry was there and is gone"


def _flat(ingredients: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in ingredients.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            # As JSON gives it back: there are no tuples.
            yield f"{before}{name}", list(value) if isinstance(value, tuple) else value


def _short(value: Any) -> str:
    if value is None:
        return "not there"
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
