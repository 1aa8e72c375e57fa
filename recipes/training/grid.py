"""Pictures with their captions, on one picture."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from ..text_lines import text_lines
from .picture import Picture, to_pil

CELL = 384
LEAST = 128  # pixels: narrower columns would have no room for a caption
GAP, MARGIN, LINE = 16, 24, 18
CAPTION_LINES, TITLE_LINES = 3, 2
PAPER, INK, FAINT = "#fbfaf8", "#1d1d1f", "#75757c"


def picture_grid(
    pictures: Sequence[Picture],
    captions: Sequence[str] = (),
    *,
    columns: int | None = None,
    cell: int = CELL,
    title: str = "",
) -> Image.Image:
    """Return pictures in rows, each with its caption below, in mode RGB.

    Captions are broken into at most three lines; "…" ends what is cut. Characters that Pillow's own
    font lacks, such as Chinese ones, are drawn as boxes: a run's report has them all.

    Args:
        pictures: PIL images, arrays uint8 [H, W, 3], or tensors uint8 [3, H, W], of any sizes.
        captions: One for each picture, or none at all.
        columns: Pictures in a row; without it as many as make the grid about square, 4 at most.
        cell: Greatest width and height of a picture in pixels: larger ones are scaled down.
        title: Heading.

    Raises:
        TypeError: If an array is not uint8.
        ValueError: If there are no pictures, not as many captions, or no room.
    """
    if not pictures:
        raise ValueError("there are no pictures for a grid")
    if captions and len(captions) != len(pictures):
        raise ValueError(f"there are {len(pictures)} pictures and {len(captions)} captions")
    if cell < 1 or (columns is not None and columns < 1):
        raise ValueError(f"cell and columns must be at least 1, got {cell} and {columns}")
    columns = min(len(pictures), columns or min(4, math.ceil(math.sqrt(len(pictures)))))
    shown = [to_pil(picture) for picture in pictures]
    for picture in shown:
        picture.thumbnail((cell, cell), Image.Resampling.LANCZOS)
    wide = max(LEAST, *(picture.width for picture in shown))
    font, large = ImageFont.load_default(14), ImageFont.load_default(20)
    width = 2 * MARGIN + columns * wide + (columns - 1) * GAP
    heading = text_lines(title, large, width - 2 * MARGIN, TITLE_LINES) if title else []
    texts = [text_lines(c, font, wide, CAPTION_LINES) if c.strip() else [] for c in captions]
    texts = texts or [[] for _ in shown]
    rows = [range(i, min(i + columns, len(shown))) for i in range(0, len(shown), columns)]
    tall = [max(shown[i].height + _height(texts[i]) for i in row) for row in rows]
    height = 2 * MARGIN + 28 * len(heading) + sum(tall) + GAP * (len(rows) - 1)
    grid = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(grid)
    y = MARGIN
    for line in heading:
        draw.text((MARGIN, y - 4), line, FAINT, large)
        y += 28
    for row, row_height in zip(rows, tall, strict=True):
        for column, i in enumerate(row):
            x = MARGIN + column * (wide + GAP)
            grid.paste(shown[i], (x, y))
            for k, line in enumerate(texts[i]):
                draw.text((x, y + shown[i].height + 6 + k * LINE), line, INK, font)
        y += row_height + GAP
    return grid


def _height(lines: list[str]) -> int:
    return 6 + LINE * len(lines) if lines else 0
