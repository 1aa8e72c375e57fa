"""The columns of a large Parquet file that are no images, kept in the cache as Arrow's own file.

Parquet is packed, so that a row cannot be read where it lies. Arrow's file can: it is mapped into
memory, and takes none that the system cannot have back.
"""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from .shard_index import replacing

VERSION = 1
"""Version of the file format: a file of another one is written anew."""

_KEY = b"penstock"


def map_texts(path: str, version: tuple[int, int]) -> Any | None:
    """Return the table that `keep_texts` left at ``path``, mapped; None where there is none.

    Args:
        path: The file in the cache.
        version: Size and time (ns) of the Parquet file that it must be of.
    """
    import pyarrow

    try:
        table = pyarrow.ipc.open_file(pyarrow.memory_map(path)).read_all()
        known = json.loads(table.schema.metadata[_KEY])
    except (OSError, ValueError, KeyError, TypeError):  # pyarrow's errors are of these kinds
        return None
    return table if known == [VERSION, *version] else None


def keep_texts(path: str, version: tuple[int, int], file: Any, names: Sequence[str]) -> None:
    """Write columns of a Parquet file to ``path``, whole or not at all; a batch is in memory.

    Args:
        path: The file in the cache.
        version: Size and time (ns) of the Parquet file.
        file: pyarrow's ``ParquetFile``.
        names: The columns.

    Raises:
        OSError: It cannot be written.
    """
    import pyarrow

    os.makedirs(os.path.dirname(path), exist_ok=True)
    batches = file.iter_batches(10_000, columns=list(names), use_threads=False)
    first = next(batches)
    mark = json.dumps([VERSION, *version]).encode()
    schema = first.schema.with_metadata({**(first.schema.metadata or {}), _KEY: mark})
    with replacing(path) as out, pyarrow.ipc.new_file(out, schema) as writer:
        writer.write_batch(first)
        for batch in batches:
            writer.write_batch(batch)


def kept_digest(path: str, version: tuple[int, int]) -> str | None:
    """Return the hash of the rows that `keep_digest` left beside ``path``, or None."""
    try:
        with open(f"{path}.json", encoding="utf-8") as file:
            *known, digest = json.load(file)
    except (OSError, ValueError, TypeError):
        return None
    return digest if known == [VERSION, *version] and isinstance(digest, str) else None


def keep_digest(path: str, version: tuple[int, int], digest: str) -> None:
    """Keep the hash of the rows beside ``path``; where that cannot be, do without."""
    with suppress(OSError), replacing(f"{path}.json") as out:
        out.write(json.dumps([VERSION, *version, digest]).encode())
