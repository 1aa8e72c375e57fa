"""Write a file whole or not at all."""

import os
from pathlib import Path


def write_file(path: str | Path, text: str | bytes) -> Path:
    """Return ``path``, which now holds ``text`` (UTF-8); a kill leaves what was there before.

    Args:
        path: The file; its folder must be there.
        text: All of its content.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(text.encode("utf-8", "replace") if isinstance(text, str) else text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return path
