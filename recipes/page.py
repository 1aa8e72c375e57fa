"""The frame of a page that needs no other file and no network."""

import base64
import io
from html import escape

from PIL import Image

STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1f; --faint: #6d6d75; --line: #dcdad5;
  --paper: #fbfaf8 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e6e3; --faint: #9a98a0; --line: #3a393e; --paper: #18181a } }
body { margin: 2rem auto; padding: 0 2rem; color: var(--ink);
  background: var(--paper); font: 15px/1.45 system-ui, sans-serif }
h1 { font-size: 1.5rem } h2 { font-size: 1.05rem }
small, .faint { color: var(--faint); font-weight: normal } .empty { font-style: italic }
figure { margin: 0 } figure img { display: block; border-radius: 3px }
figcaption { font-size: .8rem; margin-top: .35rem; overflow-wrap: anywhere }
figcaption small { display: block }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .8rem; border-bottom: 1px solid var(--line) }
"""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""A browser loads nothing from elsewhere and runs no script, whatever the page holds."""


def html_page(title: str, body: str, *, style: str = "") -> str:
    """Return a whole page, light or dark as the reader's system is.

    Args:
        title: Its title, as plain text.
        body: HTML, put there as it is: what comes from outside must have been escaped.
        style: CSS beyond that of the frame.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n"
        f"{body}\n</body>\n</html>\n"
    )


def data_uri(picture: Image.Image, *, quality: int = 85) -> str:
    """Return a picture as a JPEG inside a URI, for the ``src`` of an image.

    Args:
        picture: In mode RGB or L.
        quality: Of the JPEG, 1 to 95.
    """
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
