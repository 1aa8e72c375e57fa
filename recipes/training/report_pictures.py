"""The pictures of a report: the latest samples, and how each of them changed."""

from collections.abc import Sequence
from functools import lru_cache
from html import escape
from pathlib import Path

from PIL import Image

from ..page import data_uri
from .run_log import LogLine

WIDE, SMALL, SHEET = 1120, 118, 1600  # pixels: of the page, of small pictures, of a data sheet
LARGEST, A_ROW = 540, 4
COLUMNS = 8
ROWS = 16

STYLE = """
.latest { display: flex; flex-wrap: wrap; gap: 1.2rem; align-items: flex-start }
.scroll { overflow-x: auto } .changes { margin-top: 1.4rem }
.changes th { font-weight: normal; color: var(--faint); font-size: .8rem; text-align: left;
  vertical-align: top; padding: .25rem .6rem .25rem 0; border: 0 }
.changes thead th { padding-bottom: .1rem }
.changes tbody th { min-width: 9rem; max-width: 14rem; overflow-wrap: anywhere; color: var(--ink) }
.changes td { padding: .25rem .35rem .25rem 0; border: 0; vertical-align: top }
.changes img { display: block; border-radius: 3px }
.clip { display: -webkit-box; -webkit-line-clamp: 5; -webkit-box-orient: vertical;
  overflow: hidden }
.sheet img { max-width: 100%; height: auto; border-radius: 4px; border: 1px solid var(--line) }
"""


def pictures_section(folder: Path, name: str, lines: Sequence[LogLine]) -> str:
    """Return a section in HTML: the latest pictures large, and below, step by step, small ones.

    At most 16 pictures of a step and 8 steps are shown, the first and the latest among them, so
    that the page stays small enough to send; it says so where there are more.

    Args:
        folder: The run's folder.
        name: Name of the pictures.
        lines: The log's lines of that name, by step; at least one.
    """
    latest = lines[-1]
    count = min(ROWS, len(latest.files))
    side = min(LARGEST, WIDE // min(A_ROW, count) - 20)  # whole rows
    large = [_latest(folder, latest, i, side) for i in range(count)]
    words = f"step {latest.step:,}"
    if len(latest.files) > ROWS:
        words += f"; {ROWS} of {len(latest.files)} pictures are shown"
    parts = [f"<h2>{escape(name[:1].upper() + name[1:])} <small>{words}</small></h2>"]
    parts.append(f'<div class="latest">{"".join(large)}</div>')
    if len(lines) > 1:
        parts.append(_changes(folder, lines))
    return "\n".join(parts)


def sheet_figure(path: Path, alt: str) -> str:
    """Return a large picture in HTML, as wide as the page at most."""
    return f'<div class="sheet">{_img(path, SHEET * 4, alt, width=SHEET)}</div>'


def _latest(folder: Path, line: LogLine, i: int, side: int) -> str:
    caption = _caption(line, i)
    return (
        f'<figure style="width:{side}px">{_img(folder / line.files[i], side, caption)}'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _changes(folder: Path, lines: Sequence[LogLine]) -> str:
    last = len(lines) - 1
    count = min(COLUMNS, len(lines))
    chosen = [lines[round(k * last / (count - 1))] for k in range(count)]
    heads = "".join(f"<th>step {line.step:,}</th>" for line in chosen)
    rows = []
    for i in range(min(ROWS, len(chosen[-1].files))):
        caption = _caption(chosen[-1], i)
        cells = "".join(
            f"<td>{_img(folder / line.files[i], SMALL, caption)}</td>"
            if i < len(line.files)
            else "<td></td>"
            for line in chosen
        )
        tip = escape(caption, quote=True)
        head = f'<th title="{tip}"><div class="clip">{escape(caption)}</div></th>'
        rows.append(f"<tr>{head}{cells}</tr>")
    words = f"{count} of {len(lines)} steps" if count < len(lines) else "all steps"
    return (
        f'<div class="scroll"><table class="changes"><thead><tr><th>{words}</th>{heads}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _caption(line: LogLine, i: int) -> str:
    return line.captions[i] if i < len(line.captions) else ""


def _img(path: Path, side: int, alt: str, *, width: int | None = None) -> str:
    try:
        source, wide, tall = _embedded(path, path.stat().st_mtime_ns, width or side, side)
    except OSError as error:
        words = f"{path.name}: {error.strerror or error}"
        return f'<p class="empty faint">{escape(words)}</p>'
    tip = escape(alt, quote=True)
    return f'<img src="{source}" width="{wide}" height="{tall}" alt="{tip}">'


@lru_cache(maxsize=4 * COLUMNS * ROWS)  # a report is made anew at each validation
def _embedded(path: Path, changed: int, wide: int, tall: int) -> tuple[str, int, int]:
    with Image.open(path) as file:
        picture = file.convert("RGB")
    picture.thumbnail((wide, tall), Image.Resampling.LANCZOS)
    return data_uri(picture), picture.width, picture.height
