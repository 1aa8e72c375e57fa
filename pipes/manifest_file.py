"""A manifest that lies at a URL, as a local file."""

import os
from hashlib import file_digest

from .fetch import fetch
from .make_once import make_once
from .remote import Remote, hash_name
from .shard_cache import cache_root


def manifest_file(url: str, remote: Remote, cache: str | None = None) -> str:
    """Return the path of the manifest at ``url``, fetched whole for each of its versions.

    Like an index it is never removed: its rows are read from it for as long as a run goes. Where a
    server tells no version it is fetched each time, and known by its hash.

    Args:
        url: Whatever fsspec opens.
        remote: How it is reached.
        cache: Folder of the cache, see `cache_root`.

    Raises:
        FileNotFoundError: There is none.
        OSError: It cannot be fetched whole, or the cache cannot be written.
    """
    try:
        info = remote.info(url)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no such manifest: {url}") from error
    folder = os.path.join(cache_root(cache), "manifests")
    os.makedirs(folder, exist_ok=True)
    known = info.version.known
    path = os.path.join(folder, hash_name(f"{url} {tuple(info.version)}"))
    made = False

    def write(fd: int) -> str:
        nonlocal made, path
        fetch(remote, url, info, fd)
        if not known:
            with open(fd, "rb", closefd=False) as file:
                file.seek(0)
                path = os.path.join(folder, hash_name(file_digest(file, "blake2b").hexdigest()))
        made = True
        return path

    make_once(path, write, None if known else lambda: made)
    return path
