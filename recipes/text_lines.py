"""Text broken into lines of a width in pixels."""

from bisect import bisect_right
from typing import Any

LONGEST = 4096
"""Characters of a paragraph that are looked at: more would not fit on any picture."""


def text_lines(text: str, font: Any, width: float, limit: int) -> list[str]:
    """Return ``text`` as at most ``limit`` lines of ``width`` pixels; "…" ends what is cut.

    Args:
        text: Any text; its own line breaks are kept, other runs of space become one.
        font: A font of Pillow, which measures.
        width: Greatest width of a line, in pixels.
        limit: Greatest number of lines, at least 1.
    """
    lines: list[str] = []
    for paragraph in text.splitlines()[: limit + 1]:
        line = ""
        for word in paragraph[:LONGEST].split():
            if line and font.getlength(f"{line} {word}") > width:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}".strip()
        lines.append(line)
    cut = len(lines) > limit
    lines = lines[:limit]
    for i, line in enumerate(lines):
        ends = "…" if cut and i == limit - 1 else ""
        if font.getlength(line + ends) > width:
            line, ends = _cut(line, font, width), "…"
        lines[i] = line + ends
    return lines or [""]


def _cut(line: str, font: Any, width: float) -> str:
    """Return as much of a line as fits with a "…" behind it."""

    def length(letters: int) -> float:
        return float(font.getlength(f"{line[:letters]}…"))

    return line[: max(0, bisect_right(range(len(line)), width, key=length) - 1)]
