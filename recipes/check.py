"""Check a data set: is every image an image, has it a caption, and what do buckets do to it."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from ..pipes import BucketReport, Buckets, ManifestReader
from ..pipes.decode_image import DecodePolicy
from .check_rows import RowCheck
from .check_shards import ShardCheck
from .findings import Extreme, Findings
from .tally import Tally


@dataclass(frozen=True)
class Check:
    """What a check of a data set found.

    Attributes:
        shards: Shards looked at, and how many there are.
        rows: Rows of manifests and images of folders looked at, and how many there are.
        samples: Samples looked at.
        readable: The shards that they are of.
        findings: What was found.
        report: What the buckets do to the images.
        smallest: The image of the smallest area; None without any.
        largest: The image of the largest area.
        keys_compared: Keys compared with each other; None without shards.
    """

    shards: tuple[int, int]
    rows: tuple[int, int]
    samples: int
    readable: list[str]
    findings: Findings
    report: BucketReport
    smallest: Extreme | None
    largest: Extreme | None
    keys_compared: int | None

    def __str__(self) -> str:
        words = f"{self.samples:,} samples in {self.shards[0]:,} of {self.shards[1]:,} shards"
        if self.rows[1]:
            rows = f"{self.rows[0]:,} of {self.rows[1]:,} rows"
            words = f"{words}, {rows} of manifests among them" if self.shards[1] else rows
        lines = [words, str(self.findings), ""]
        if self.keys_compared is not None and self.keys_compared < self.samples - self.rows[0]:
            lines.append(f"Keys were compared for the first {self.keys_compared:,} samples.")
        if self.smallest is not None:
            lines += [f"smallest  {self.smallest}", f"largest   {self.largest}", ""]
        return "\n".join([*lines, str(self.report)])

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON holds it; sizes are [height, width] in pixels."""
        return {
            "shards": {"checked": self.shards[0], "all": self.shards[1]},
            "rows": {"checked": self.rows[0], "all": self.rows[1]},
            "samples": self.samples,
            "faults": self.findings.faults,
            "findings": self.findings.as_dict(),
            "smallest": self.smallest and self.smallest.as_dict(),
            "largest": self.largest and self.largest.as_dict(),
            "keys_compared": self.keys_compared,
            "buckets": self.report.as_dict(),
        }


def check_data(
    shards: Sequence[str],
    manifests: Sequence[ManifestReader],
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

    Memory does not grow with the data set, but for 16 bytes a sample.

    Args:
        shards: URLs of tar shards.
        manifests: Manifests and folders.
        buckets: Where images go.
        caption: Name of the caption's field, as in `Decoder`.
        cache: Folder of the indexes.
        limit: Samples to look at, in shards taken in a random order, and rows taken at random from
            each manifest; None: all of them, in their order.
        threads: Threads that decode.
        crop_share: The share of an image that a crop may take without being noted, 0 to 1.
        policy: How images are decoded.
        seed: Seed of what is taken.
    """
    tally = Tally(buckets, crop_share, caption, policy or DecodePolicy())
    tars = ShardCheck(shards, limit, cache, seed)
    rows = [RowCheck(reader, limit, seed) for reader in manifests]
    parts: list[ShardCheck | RowCheck] = [*([tars] if shards else []), *rows]
    with ThreadPoolExecutor(threads) as pool, tqdm(unit=" samples", desc="check") as bar:
        done = 0
        for i, part in enumerate(parts):
            later = sum(len(row) for row in rows if row in parts[i + 1 :])
            for expected in part.run(tally, pool):
                bar.total = done + expected + later
                bar.update()
            done += len(part)
        bar.total = done
    _note_copies(tally, parts)
    return Check(
        shards=(tars.opened, len(shards)),
        rows=(sum(map(len, rows)), sum(len(reader.table) for reader in manifests)),
        samples=done,
        readable=[url for url, _ in tars.taken],
        findings=tally.findings,
        report=tally.sizes.report,
        smallest=tally.sizes.smallest,
        largest=tally.sizes.largest,
        keys_compared=tars.keys.compared if shards else None,
    )


def _note_copies(tally: Tally, parts: Sequence[ShardCheck | RowCheck]) -> None:
    """Note the images that are copies of earlier ones."""
    copies = tally.copies.copies()
    tally.findings.counts["copy"] = len(copies)
    for copy, first in copies[: tally.findings.most].tolist():
        url, key = _name(parts, first)
        tally.findings.example("copy", *_name(parts, copy), f"the same as {key} of {url}")


def _name(parts: Sequence[ShardCheck | RowCheck], i: int) -> tuple[str, str]:
    """Return URL and key of the ``i``-th sample of all parts."""
    for part in parts:
        if i < len(part):
            return part.name(i)
        i -= len(part)
    raise IndexError(i)
