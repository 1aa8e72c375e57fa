"""The file that names the samples that were passed over."""

import json
import os
from collections.abc import Iterable

from .order import Skipped


def append_skipped(path: str | os.PathLike[str], g: int, skipped: Iterable[Skipped]) -> None:
    """Append a line of JSON for each sample: batch, shard, key, reason.

    The lines go out in one write, so that ranks may share the file.
    """
    lines = [
        json.dumps({"batch": g, "shard": url, "key": key, "reason": reason}) + "\n"
        for url, key, reason in skipped
    ]
    with open(path, "ab", buffering=0) as file:
        file.write("".join(lines).encode())
