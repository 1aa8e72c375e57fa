"""What lies at a path or URL: tar shards, manifests, or a folder of images."""

import os
from collections.abc import Mapping, Sequence

from ..pipes import ManifestReader, ShardLister
from ..pipes.open_table import MANIFESTS
from ..pipes.sources import SourcePipe
from ..pipes.tar import TarReader
from ..pipes.urls import LIST_ENDINGS, TAR_ENDINGS, expand_urls, local_path


def open_source(
    url: str | Sequence[str],
    *,
    image: str | None = None,
    caption: str | Sequence[str] | None = None,
    image_dir: str | None = None,
    seed: int = 0,
    shuffle: bool = False,
    cache: str | None = None,
    split: str | None = None,
    splits: Mapping[str, float] | None = None,
) -> SourcePipe:
    """Return the samples of what lies at a path or URL.

    Args:
        url: Shards as `expand_urls` takes them (a folder of shards too), else what `ManifestReader`
            takes; manifests may have braces and wildcards in their names.
        image: The image's column of a manifest.
        caption: The caption's column of a manifest, or several; empty: none are looked for.
        image_dir: Folder or URL that a manifest's paths of images are relative to.
        seed: Seed of the order and of every other random draw.
        shuffle: Whether samples come in a random order.
        cache: Folder of the cache.
        split: Which of ``splits`` to take: by a hash of each sample of shards, which adding data
            does not move; of a manifest's rows the exact number.
        splits: Name to fraction.

    Raises:
        FileNotFoundError: There is nothing.
        ValueError: It is nothing that can be read, or columns are named for shards.
    """
    urls = [url] if isinstance(url, str) else list(url)
    if not all(map(is_manifest, urls)):
        if image is not None or caption is not None or image_dir is not None:
            raise ValueError(
                f"{urls} are tar shards, which have no columns: image, caption and image_dir are "
                "for manifests and folders"
            )
        lister = ShardLister(
            urls,
            seed=seed,
            shuffle=shuffle,
            cache=cache,
            split=split,
            splits=splits,
            split_by="shard" if splits is None else "sample",
        )
        return TarReader(lister)
    paths = [
        path
        for one in urls
        for path in ([one] if _is_there(one) or not one.endswith(MANIFESTS) else expand_urls(one))
    ]
    return ManifestReader(
        paths if len(paths) > 1 else paths[0],
        image=image,
        caption=caption,
        image_dir=image_dir,
        seed=seed,
        shuffle=shuffle,
        cache=cache,
        split=split,
        splits=splits,
    )


def is_manifest(url: str) -> bool:
    """Return whether a path or URL is no shard, no folder of shards and no list of shards.

    Raises:
        OSError: A remote folder cannot be listed.
    """
    path = local_path(url)
    if path is not None and os.path.isdir(path):
        with os.scandir(path) as entries:
            return not any(e.name.endswith(TAR_ENDINGS) and e.name[0] != "." for e in entries)
    if os.path.splitext(url)[1].lower() in MANIFESTS:
        return True
    if path is None and url.endswith("/") and not set("{}*?[]@") & set(url):
        try:
            return not expand_urls(url)
        except (ValueError, FileNotFoundError):  # it has no shards
            return True
    return not (url.startswith("@") or url.endswith((*LIST_ENDINGS, *TAR_ENDINGS, "/", "*", "}")))


def _is_there(url: str) -> bool:
    path = local_path(url)
    return path is None or os.path.exists(path)
