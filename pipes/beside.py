"""What lies beside a remote shard and saves fetching it: its index, img2dataset's statistics."""

import json
import tempfile
import warnings

from .remote import Remote, Version
from .shard_index import ShardIndex
from .urls import TAR_ENDINGS

SIDECAR = ".index.npz"
"""Ending of a sidecar's name: that of ``00000.tar`` is ``00000.tar.index.npz``."""


def index_beside(remote: Remote, url: str, version: Version) -> ShardIndex | None:
    """Return the index that lies beside a remote shard, or None where none is of this version.

    One that was written beside a local shard and then copied with it has another time in it: it
    counts where the size is the same and it is not older than the shard.

    Raises:
        OSError: It cannot be had.
    """
    data = None if url.startswith("pipe:") else remote.read_small(url + SIDECAR)
    if data is None:
        return None
    with tempfile.NamedTemporaryFile(suffix=SIDECAR) as file:
        file.write(data)
        file.flush()
        try:
            index, size, mark = ShardIndex.load(file.name)
        except ValueError as err:
            cause = str(err).replace(file.name, url + SIDECAR)
            text = f"{cause}; the shard is scanned instead"
            warnings.warn(text, RuntimeWarning, stacklevel=3)
            return None
    if size != version.size or (mark != version.mark and _is_older(remote, url)):
        return None
    return index


def _is_older(remote: Remote, url: str) -> bool:
    """Return whether the sidecar of a remote shard is known to be older than it."""
    shard, sidecar = (remote.info(u).modified for u in (url, url + SIDECAR))
    return bool(shard is not None and sidecar is not None and sidecar < shard)


def successes_beside(remote: Remote, url: str) -> int | None:
    """Return the number of samples in img2dataset's ``<stem>_stats.json``, or None without any.

    Raises:
        OSError: It cannot be had.
    """
    if url.startswith("pipe:"):
        return None
    ending = next((e for e in sorted(TAR_ENDINGS, key=len, reverse=True) if url.endswith(e)), "")
    stats = remote.read_small(url[: len(url) - len(ending)] + "_stats.json")
    try:
        successes = json.loads(stats or b"")["successes"]
    except (ValueError, KeyError, TypeError):
        return None
    return successes if isinstance(successes, int) and successes >= 0 else None
