"""Check a data set: is every image an image, has it a caption, and what do buckets do to it."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from tqdm import tqdm

from ..pipes import BucketReport, Buckets, DataError
from ..pipes.decode_fields import CaptionField
from ..pipes.decode_image import DecodePolicy, decode
from ..pipes.draws import Draws, hash64, permutation
from ..pipes.index_store import IndexStore
from ..pipes.sample import Extent, Ref
from ..pipes.shard_index import ShardIndex
from .check_keys import KeyCheck, name_doubles
from .check_sizes import SizeCheck
from .findings import Extreme, Findings

AT_ONCE = 256
"""Images handed to the threads at once: what is in memory does not depend on a shard's size."""

_DRAWS = Draws(0, Ref(0, 0, 0))


@dataclass(frozen=True)
class Check:
    """What a check of a data set found.

    Attributes:
        shards: Shards looked at, and how many there are.
        samples: Samples looked at.
        readable: The shards that they are of.
        findings: What was found.
        report: What the buckets do to the images.
        smallest: The image of the smallest area; None without any.
        largest: The image of the largest area.
        keys_compared: Keys compared with each other.
    """

    shards: tuple[int, int]
    samples: int
    readable: list[str]
    findings: Findings
    report: BucketReport
    smallest: Extreme | None
    largest: Extreme | None
    keys_compared: int

    def __str__(self) -> str:
        words = f"{self.samples:,} samples in {self.shards[0]:,} of {self.shards[1]:,} shards"
        lines = [words, str(self.findings), ""]
        if self.keys_compared < self.samples:
            lines.append(f"Keys were compared for the first {self.keys_compared:,} samples.")
        if self.smallest is not None:
            lines += [f"smallest  {self.smallest}", f"largest   {self.largest}", ""]
        return "\n".join([*lines, str(self.report)])

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON holds it; sizes are [height, width] in pixels."""
        return {
            "shards": {"checked": self.shards[0], "all": self.shards[1]},
            "samples": self.samples,
            "faults": self.findings.faults,
            "findings": self.findings.as_dict(),
            "smallest": self.smallest and self.smallest.as_dict(),
            "largest": self.largest and self.largest.as_dict(),
            "keys_compared": self.keys_compared,
            "buckets": self.report.as_dict(),
        }


def check_shards(
    urls: Sequence[str],
    buckets: Buckets,
    *,
    caption: str | None = None,
    cache: str | None = None,
    limit: int | None = None,
    threads: int = 4,
    crop_share: float = 0.1,
    policy: DecodePolicy | None = None,
    seed: int = 0,
) -> Check:
    """Return what is wrong with a data set, every image decoded, with a progress bar.

    Memory does not grow with the data set, but for 8 bytes a key.

    Args:
        urls: The shards.
        buckets: Where images go.
        caption: Name of the caption's field, as in `Decoder`.
        cache: Folder of the indexes.
        limit: Samples to look at, in shards taken in a random order; None: all of them, in the
            order of the shards.
        threads: Threads that decode.
        crop_share: The share of an image that a crop may take without being noted, 0 to 1.
        policy: How images are decoded.
        seed: Seed of the order of the shards.
    """
    findings, keys = Findings(), KeyCheck()
    sizes = SizeCheck(buckets, findings, crop_share)
    store, policy = IndexStore(cache), policy or DecodePolicy()
    captions = CaptionField(caption, "first", False, None)
    order = range(len(urls)) if limit is None else permutation(len(urls), hash64(seed)).tolist()
    taken: list[tuple[str, int]] = []
    samples = opened = 0
    with ThreadPoolExecutor(threads) as pool, tqdm(unit=" samples", desc="check") as bar:
        for url in (urls[i] for i in order):
            if limit is not None and samples >= limit:
                break
            opened += 1
            found = _open(store, url, findings)
            if found is None:
                continue
            path, index = found
            count = len(index) if limit is None else min(len(index), limit - samples)
            samples += count
            taken.append((url, count))
            bar.total = _expected(samples, opened, len(urls), limit)
            keys.add(index.keys()[:count])
            sizes.add(url, index, count)
            for i, faults in enumerate(_faults(pool, path, index, count, captions, policy)):
                for kind, reason in faults:
                    findings.add(kind, url, index.key(i), reason)
                bar.update()
        bar.total = samples
    _note_doubles(keys, taken, store, findings)
    return Check(
        shards=(opened, len(urls)),
        samples=samples,
        readable=[url for url, _ in taken],
        findings=findings,
        report=sizes.report,
        smallest=sizes.smallest,
        largest=sizes.largest,
        keys_compared=keys.compared,
    )


def _open(store: IndexStore, url: str, findings: Findings) -> tuple[str, ShardIndex] | None:
    try:
        return store.open(url, image_sizes=True)
    except (DataError, OSError) as error:
        findings.add("damaged_shard", url, "", str(error))
        return None


def _expected(samples: int, opened: int, shards: int, limit: int | None) -> int:
    """Return how many samples there will be, if all shards are like those that were opened."""
    likely = round(samples / opened * shards)
    return likely if limit is None else min(limit, likely)


def _faults(
    pool: ThreadPoolExecutor,
    path: str,
    index: ShardIndex,
    count: int,
    captions: CaptionField,
    policy: DecodePolicy,
) -> Iterator[list[tuple[str, str]]]:
    """Yield the (kind, reason) of all that is wrong with each sample of a shard."""
    fd = os.open(path, os.O_RDONLY)
    try:
        numbers = iter(range(count))
        while some := list(islice(numbers, AT_ONCE)):
            images = pool.map(partial(_image_fault, fd, index, policy), some)
            for i, image in zip(some, images, strict=True):
                faults = (image, _caption_fault(path, index.members(i), captions))
                yield [fault for fault in faults if fault is not None]
    finally:
        os.close(fd)


def _image_fault(
    fd: int, index: ShardIndex, policy: DecodePolicy, i: int
) -> tuple[str, str] | None:
    extent = index.image_extent(i)
    if extent is None:
        fields = ", ".join(name for name, _, _ in index.members(i))
        return "no_image", f"its fields are: {fields}"
    field, offset, size = extent
    data = os.pread(fd, size, offset)
    try:
        decode(data, policy)
    except DataError as error:
        return "corrupt_image", f"field {field!r}: {error}"
    return None


def _caption_fault(
    path: str, members: Sequence[tuple[str, int, int]], captions: CaptionField
) -> tuple[str, str] | None:
    sample: dict[str, Any] = {name: Extent(path, at, size) for name, at, size in members}
    try:
        field, text = captions.read(sample, _DRAWS)
    except DataError as error:
        return "no_caption", str(error)
    if text is None:
        return "no_caption", f"its fields are: {', '.join(sample)}"
    return None if text else ("empty_caption", f"field {field or captions.name!r}")


def _note_doubles(
    keys: KeyCheck, taken: list[tuple[str, int]], store: IndexStore, findings: Findings
) -> None:
    doubles = keys.doubles()
    findings.counts["duplicate_key"] = len(doubles)
    if len(doubles):
        shards = ((url, store.open(url)[1].keys()[:count]) for url, count in taken)
        for key, (first, second) in name_doubles(doubles, shards, findings.most):
            findings.example("duplicate_key", first, key, f"also in {second}")
