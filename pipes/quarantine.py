"""The file that names the samples that were passed over."""

import json
import os
from collections.abc import Sequence

from .order import Skipped


class Quarantine:
    """Appends a line of JSON (batch, shard, key, reason) for each sample passed over.

    A bad sample comes again in every pass; it is counted each time, and written once. A batch's
    lines go out in one write, so that ranks may share the file.

    Args:
        path: The file; it is made when there is something to write.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path
        self.count = 0
        self._written: set[Skipped] = set()

    def add(self, g: int, skipped: Sequence[Skipped]) -> None:
        """Count and write what was passed over for global batch ``g``."""
        self.count += len(skipped)
        new = [s for s in skipped if s not in self._written]
        self._written.update(new)
        lines = [
            json.dumps({"batch": g, "shard": url, "key": key, "reason": reason}) + "\n"
            for url, key, reason in new
        ]
        if lines:
            with open(self.path, "ab", buffering=0) as file:
                file.write("".join(lines).encode())
