"""Opening images with Pillow: formats that can be told by their first bytes, and no surprises.

No limit of the process's, no warnings, and one kind of error.
"""

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from PIL import Image, ImageFile

from .errors import DataError

FORMATS: Final = (
    *("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "QOI", "DDS"),
    *("PSD", "HEIF", "JXL"),  # the last two where a plugin of Pillow's has registered them
)
"""What is opened. Only formats that begin with magic bytes (Pillow takes many random bytes for a
TGA), and none that starts another program (EPS runs Ghostscript)."""


def open_image(data: bytes) -> ImageFile.ImageFile:
    """Return the image that Pillow opens in ``data``, its pixels not yet loaded.

    Not `PIL.Image.open`, which tries every format there is, and warns or raises by a limit that is
    the whole process's: the caller has a limit of its own.

    Raises:
        DataError: If the data is in none of `FORMATS`.
        Exception: Whatever the format's plugin raises; call it inside `reading`.
    """
    cause = ""
    for prepare in (Image.preinit, Image.init):
        prepare()
        for name in FORMATS:
            if name not in Image.OPEN:
                continue
            factory, accept = Image.OPEN[name]
            accepted = accept(data[:16]) if accept else False
            if isinstance(accepted, str):
                cause = f" ({accepted})"
            elif accepted:
                return factory(io.BytesIO(data), "")
    if not data:
        raise DataError("not an image: no bytes at all")
    raise DataError(f"not an image: begins with {data[:12]!r}{cause}")


@contextmanager
def reading() -> Iterator[None]:
    """Turn whatever a decoder raises at bad bytes into a DataError that says the cause.

    Decoders raise nearly anything: OSError, SyntaxError, ValueError, struct.error, IndexError, ...
    The bytes are in memory, so that no OSError here is one of input and output.
    """
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError as err:
        raise DataError(f"{err} Pillow's own limit is PIL.Image.MAX_IMAGE_PIXELS") from err
    except Exception as err:
        raise DataError(f"cannot be decoded: {str(err) or type(err).__name__}") from err


_quiet_lock = threading.Lock()
_quiet_depth = 0
_quiet_state = warnings.catch_warnings()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Pillow's warnings (odd metadata, size) from the user; safe among threads that use it.

    `warnings.catch_warnings` alone is not: two that overlap in two threads leave the filters
    changed.
    """
    global _quiet_depth, _quiet_state
    with _quiet_lock:
        if _quiet_depth == 0:
            _quiet_state = warnings.catch_warnings()
            _quiet_state.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
        _quiet_depth += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0:
                _quiet_state.__exit__(None, None, None)
