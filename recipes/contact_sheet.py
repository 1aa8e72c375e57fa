"""Batches as the model would see them, on one picture and one page."""

import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .page import data_uri, html_page
from .text_lines import text_lines
from .write_file import write_file

PNG_IMAGES = 64
PAGE_IMAGES = 400
COLUMNS = 8
CELL, PAGE_CELL = 180, 256  # pixels: greatest width of a thumbnail; its height is a third more
GAP, MARGIN = 16, 32
CAPTION_LINES = 3
PAPER, INK, FAINT, FRAME = "#fbfaf8", "#1d1d1f", "#75757c", "#dcdad5"

STYLE = """
body { max-width: 100rem }
h1 { margin: 0 } h2 { margin: 2.2rem 0 .8rem }
.notes { white-space: pre-line; max-width: 50rem }
.sheet { display: flex; flex-wrap: wrap; gap: 1.2rem; align-items: flex-start }
table { margin-top: 1.5rem }
th, td { text-align: right }
"""


@dataclass(frozen=True)
class _Cell:
    """One picture of a batch: uint8 [3, H, W], not yet scaled."""

    image: Any
    caption: str
    key: str
    url: str
    batch: int

    @property
    def size(self) -> tuple[int, int]:
        return int(self.image.shape[1]), int(self.image.shape[2])


def write_contact_sheet(
    batches: Sequence[Mapping[str, Any]],
    out: str | Path,
    *,
    title: str,
    notes: str = "",
    report_html: str = "",
) -> tuple[Path, Path]:
    """Return the paths of ``contact_sheet.png`` and ``contact_sheet.html``, written into ``out``.

    Both show the batches' pictures grouped by size (height x width), with captions below. The page
    needs no other file and no network. The PNG shows at most 64 pictures, the page 400, taken from
    all groups in turn; both say so when some are left out.

    Args:
        batches: Batches of a loader: ``image`` uint8 [B, 3, H, W] (tensor or array) or a list of
            [3, h, w], and ``caption``, ``__key__``, ``__url__`` lists of str, ``__batch__`` int;
            all but the image may be missing.
        out: Folder; made if missing.
        title: Heading.
        notes: Plain text below the heading; its line breaks are kept.
        report_html: An HTML fragment for the end of the page, such as `BucketReport.to_html` gives:
            trusted, and put there as it is.

    Raises:
        TypeError: If an image is not uint8.
        ValueError: If there is no picture, or one is not [3, H, W].
    """
    cells = [cell for batch in batches for cell in _cells(batch)]
    if not cells:
        raise ValueError("there are no pictures to show: no batch has an image")
    groups: dict[tuple[int, int], list[_Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.size].append(cell)
    ordered = dict(sorted(groups.items(), key=lambda g: (g[0][0] / g[0][1], g[0])))
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    png, page = out / "contact_sheet.png", out / "contact_sheet.html"
    sheet = io.BytesIO()
    _draw_sheet(ordered, title, notes, len(batches)).save(sheet, "PNG")
    write_file(png, sheet.getvalue())
    write_file(page, _page(ordered, title, notes, report_html, len(batches)))
    return png, page


def _cells(batch: Mapping[str, Any]) -> Iterable[_Cell]:
    images = batch["image"]
    count = len(images)
    empty = [""] * count
    texts = [batch.get(name, empty) for name in ("caption", "__key__", "__url__")]
    for image, caption, key, url in zip(images, *texts, strict=True):
        yield _Cell(
            _checked(image), str(caption), str(key), str(url), int(batch.get("__batch__", -1))
        )


def _checked(image: Any) -> Any:
    if not str(image.dtype).endswith("uint8"):
        raise TypeError(f"a picture must be uint8 [3, H, W], got {image.dtype}")
    if len(image.shape) != 3 or image.shape[0] != 3:
        raise ValueError(f"a picture must be [3, H, W], got {list(image.shape)}")
    return image


def _thumbnail(cell: _Cell, width: int) -> Image.Image:
    image = cell.image.cpu().numpy() if hasattr(cell.image, "cpu") else np.asarray(cell.image)
    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    picture.thumbnail((width, width * 4 // 3), Image.Resampling.LANCZOS)
    return picture


def _shown(groups: Mapping[Any, list[_Cell]], limit: int) -> dict[Any, int]:
    """Return how many of each group are shown: all, or a fair share of ``limit`` in whole rows."""
    share = max(1, limit // len(groups))
    share -= share % COLUMNS if share > COLUMNS else 0
    shown = dict.fromkeys(groups, 0)
    for step in (share, COLUMNS):
        more = True
        while more:
            more = False
            for g, cells in groups.items():
                n = min(step, len(cells) - shown[g])
                if 0 < n <= limit - sum(shown.values()):
                    shown[g] += n
                    more = step == COLUMNS
    return shown


def _summary(groups: Mapping[Any, list[_Cell]], shown: Mapping[Any, int], batches: int) -> str:
    total, few = sum(map(len, groups.values())), sum(shown.values())
    words = f"{_count(total, 'picture')} in {_count(batches, 'batch', 'batches')} of "
    words += f"{_count(len(groups), 'size')} (height x width)"
    return words if few == total else f"{words}; {few} of them are shown"


def _group_words(cells: Sequence[_Cell]) -> str:
    batches = len({cell.batch for cell in cells})
    return f"{_count(len(cells), 'picture')} in {_count(batches, 'batch', 'batches')}"


def _count(n: int, one: str, many: str = "") -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def _page(
    groups: Mapping[tuple[int, int], list[_Cell]],
    title: str,
    notes: str,
    report_html: str,
    batches: int,
) -> str:
    shown = _shown(groups, PAGE_IMAGES)
    body = [f"<h1>{escape(title)}</h1>"]
    body.append(f'<p class="faint">{escape(_summary(groups, shown, batches))}</p>')
    if notes:
        body.append(f'<p class="notes">{escape(notes)}</p>')
    for (height, width), cells in groups.items():
        if not shown[height, width]:
            continue
        body.append(f"<h2>{height} x {width} <small>{_group_words(cells)}</small></h2>")
        figures = "\n".join(_figure(cell) for cell in cells[: shown[height, width]])
        body.append(f'<div class="sheet">\n{figures}\n</div>')
    body.append(report_html)
    return html_page(title, "\n".join(body), style=STYLE)


def _figure(cell: _Cell) -> str:
    picture = _thumbnail(cell, PAGE_CELL)
    tip = escape(f"{cell.key}\n{cell.url}", quote=True)
    caption = escape(cell.caption) if cell.caption else '<span class="empty">no caption</span>'
    return (
        f'<figure title="{tip}" style="width:{max(picture.width, 120)}px">'
        f'<img src="{data_uri(picture)}" width="{picture.width}"'
        f' height="{picture.height}" alt="{escape(cell.caption, quote=True)}">'
        f"<figcaption>{caption}<small>{escape(_where(cell))}</small></figcaption></figure>"
    )


def _where(cell: _Cell) -> str:
    return cell.key if cell.batch < 0 else f"batch {cell.batch} · {cell.key}"


def _draw_sheet(
    groups: Mapping[tuple[int, int], list[_Cell]], title: str, notes: str, batches: int
) -> Image.Image:
    shown = _shown(groups, PNG_IMAGES)
    fonts = {size: ImageFont.load_default(size) for size in (12, 16, 26)}
    width = 2 * MARGIN + COLUMNS * CELL + (COLUMNS - 1) * GAP
    # Drawn on a sheet that is surely long enough, and cut afterwards.
    rows = sum(-(-n // COLUMNS) for n in shown.values())
    lines = text_lines(notes, fonts[16], width - 2 * MARGIN, 12) if notes else []
    tall = 200 + 24 * len(lines) + 60 * len(groups) + rows * (CELL * 4 // 3 + 120)
    sheet = Image.new("RGB", (width, tall), PAPER)
    draw = ImageDraw.Draw(sheet)
    y = MARGIN
    draw.text((MARGIN, y), text_lines(title, fonts[26], width - 2 * MARGIN, 1)[0], INK, fonts[26])
    y += 40
    draw.text((MARGIN, y), _summary(groups, shown, batches), FAINT, fonts[16])
    y += 26
    for line in lines:
        draw.text((MARGIN, y), line, INK, fonts[16])
        y += 22
    for (h, w), cells in groups.items():
        if not shown[h, w]:
            continue
        y += 18
        draw.line((MARGIN, y, width - MARGIN, y), FRAME)
        y += 10
        draw.text((MARGIN, y), f"{h} x {w}", INK, fonts[16])
        indent = MARGIN + draw.textlength(f"{h} x {w}", fonts[16]) + 12
        draw.text((indent, y + 3), _group_words(cells), FAINT, fonts[12])
        y += 32
        for start in range(0, shown[h, w], COLUMNS):
            row = cells[start : min(start + COLUMNS, shown[h, w])]
            y += _draw_row(sheet, draw, row, y, fonts[12]) + GAP
    return sheet.crop((0, 0, width, y + MARGIN - GAP))


def _draw_row(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, cells: Sequence[_Cell], y: int, font: Any
) -> int:
    """Draw one row of pictures with captions at height ``y``; return how tall it became."""
    tallest = 0
    for column, cell in enumerate(cells):
        x = MARGIN + column * (CELL + GAP)
        picture = _thumbnail(cell, CELL)
        sheet.paste(picture, (x, y))
        frame = (x - 1, y - 1, x + picture.width, y + picture.height)
        draw.rectangle(frame, outline=FRAME)  # a white picture would have no edge
        text = y + picture.height + 5
        for line in text_lines(cell.caption or "(no caption)", font, CELL, CAPTION_LINES):
            draw.text((x, text), line, INK if cell.caption else FAINT, font)
            text += 15
        draw.text((x, text), _shortened(cell, font, CELL), FAINT, font)
        tallest = max(tallest, text + 15 - y)
    return tallest


def _shortened(cell: _Cell, font: Any, width: float) -> str:
    """Return what names a cell, in ``width`` pixels: of a long key the end, which differs most."""
    words = _where(cell)
    begin, key = words[: len(words) - len(cell.key)], cell.key
    while key and font.getlength(words) > width:
        words = f"{begin}…{(key := key[1:])}"
    return words
