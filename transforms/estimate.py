"""What caches will take: gigabytes and hours, before the first step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a cache will take, from what `estimate` was told.

    Attributes:
        name: Of the cache.
        entries: Entries in all.
        there: How many of them are there already.
        entry_bytes: Bytes of one in the mean.
        seconds: Of one process for one entry; None where nothing was measured.
        processes: How many work at once.
    """

    name: str
    entries: int
    there: int
    entry_bytes: float
    seconds: float | None
    processes: int

    @property
    def missing(self) -> int:
        """Entries that are to be made."""
        return self.entries - self.there

    @property
    def bytes(self) -> int:
        """Bytes of all entries."""
        return round(self.entries * self.entry_bytes)

    @property
    def more_bytes(self) -> int:
        """Bytes that are to be written."""
        return round(self.missing * self.entry_bytes)

    @property
    def hours(self) -> float | None:
        """Hours until all entries are there; None where nothing was measured."""
        if not self.missing:
            return 0.0
        if self.seconds is None:
            return None
        return self.missing * self.seconds / self.processes / 3600

    def __str__(self) -> str:
        text = f"{self.name}: {self.entries:,} entries of {_size(self.entry_bytes)}"
        text += f", {_size(self.bytes)} in all"
        if self.there and self.missing:
            text += f"; {self.there:,} are there, {_size(self.more_bytes)} to be written"
        text += f"; {_time(self.hours)}"
        if self.missing and self.seconds:
            text += f" at {_short(self.processes / self.seconds)} entries/s"
            text += f" of {self.processes} processes" if self.processes > 1 else ""
        return text


@dataclass(frozen=True)
class Estimates:
    """What several caches that are filled one batch after another will take together.

    Attributes:
        parts: Of each.
        free: Bytes that are free where they will lie; None where nobody looked.
    """

    parts: Sequence[Estimate]
    free: int | None = None

    @property
    def bytes(self) -> int:
        """Bytes of all entries."""
        return sum(part.bytes for part in self.parts)

    @property
    def more_bytes(self) -> int:
        """Bytes that are to be written."""
        return sum(part.more_bytes for part in self.parts)

    @property
    def hours(self) -> float | None:
        """Hours until all entries are there; None where something was not measured."""
        hours = [part.hours for part in self.parts]
        return None if None in hours else sum(h for h in hours if h is not None)

    @property
    def fits(self) -> bool:
        """Whether what is to be written fits, for all that is known."""
        return self.free is None or self.more_bytes <= self.free

    def __str__(self) -> str:
        lines = [str(part) for part in self.parts]
        if len(lines) != 1:
            lines.append(f"together: {_size(self.bytes)}; {_time(self.hours)}")
        if not self.fits:
            assert self.free is not None
            lines.append(
                f"this does not fit: {_size(self.more_bytes)} are to be written, "
                f"{_size(self.free)} are free"
            )
        return "\n".join(lines)


def estimate(
    name: str,
    entries: int,
    entry_bytes: float,
    *,
    there: int = 0,
    measured: tuple[int, float] | None = None,
    processes: int = 1,
) -> Estimate:
    """Return what a cache will take; its ``str`` says it in words.

    Args:
        name: Of the cache.
        entries: How many it will hold: a sample's variants count each, a caption that recurs once.
        entry_bytes: Of one: from `latent_bytes`, `text_bytes`, or as the first ones came out.
        there: How many it holds already.
        measured: (entries, seconds) of a first batch, by one process: reading, decoding, encoding
            and writing. A model's first call is slow: time the second.
        processes: How many will work at once.

    Raises:
        ValueError: If a number is out of range.
    """
    if not 0 <= there <= entries:
        raise ValueError(f"of {entries} entries {there} cannot be there already")
    if entry_bytes < 0 or processes < 1:
        raise ValueError(f"{entry_bytes} bytes an entry and {processes} processes cannot be")
    seconds = None
    if measured is not None:
        count, took = measured
        if count < 1 or took < 0:
            raise ValueError(f"{count} entries in {took} seconds is no measurement")
        seconds = took / count
    return Estimate(
        name=name,
        entries=entries,
        there=there,
        entry_bytes=entry_bytes,
        seconds=seconds,
        processes=processes,
    )


def latent_bytes(
    height: int,
    width: int,
    *,
    channels: int = 16,
    factor: int = 8,
    keep: Literal["posterior", "mean"] = "posterior",
    dtype: torch.dtype = torch.bfloat16,
) -> int:
    """Return the bytes of an image's latents.

    Args:
        height: In pixels.
        width: In pixels.
        channels: Of the latents: 4 for SDXL, 16 for FLUX.1 and SD3, 32 for FLUX.2.
        factor: Pixels of a side to one latent.
        keep: Mean and log-variance, or the mean alone.
        dtype: In which they are kept.
    """
    count = channels * (height // factor) * (width // factor)
    return count * dtype.itemsize * (2 if keep == "posterior" else 1)


def _size(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.9995 * size:
            return f"{_short(count / size)} {unit}"
    return f"{count:.0f} bytes"


def _time(hours: float | None) -> str:
    if hours is None:
        return "how long is not measured yet"
    for unit, size in (("days", 24.0), ("hours", 1.0), ("minutes", 1 / 60)):
        if hours >= 1.5 * size:
            return f"{_short(hours / size)} {unit}"
    return "nothing to do" if hours == 0 else f"{_short(hours * 3600)} seconds"


def _short(number: float) -> str:
    """Return three digits, or all that stand before the point."""
    return f"{number:,.0f}" if number >= 99.95 else f"{number:.3g}"
