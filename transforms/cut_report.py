"""Which captions were too long for a model, and by how much."""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

ENDING = "_cut"


@dataclass
class Cut:
    """What one tokenizer cut off.

    Attributes:
        seen: Captions seen.
        captions: How many of them were cut.
        tokens: How many tokens were cut off in all.
        longest: (tokens cut off, url, key) of the captions that lost most, the worst first.
    """

    seen: int = 0
    captions: int = 0
    tokens: int = 0
    longest: list[tuple[int, str, str]] = field(default_factory=list)


class CutReport:
    """Counts the captions that were cut, batch by batch, where the batches arrive.

    Tokenizers run in workers, which cannot count for all; so every batch says of its own captions,
    in ``clip_cut``, ``t5_cut`` and so on, how many tokens did not fit::

        report = CutReport()
        for batch in loader:
            report.add(batch)
        print(report)  # t5: 3 of 400 captions cut (0.8 %), 57 tokens in all, worst: …

    Args:
        longest: How many of the worst are named, for each tokenizer.
    """

    def __init__(self, longest: int = 10) -> None:
        self.longest = longest
        self.cuts: dict[str, Cut] = {}

    def add(self, batch: Mapping[str, Any]) -> None:
        """Count a batch's captions.

        Raises:
            ValueError: If the batch has no field of counts.
        """
        names = [n for n in batch if n.endswith(ENDING) and not n.startswith("__")]
        if not names:
            raise ValueError(
                f"the batch has no field that ends in {ENDING!r}, only {sorted(batch)}: transforms "
                "that make tokens give them"
            )
        for name in names:
            cut = self.cuts.setdefault(name.removesuffix(ENDING), Cut())
            counts = batch[name].tolist()
            cut.seen += len(counts)
            cut.captions += sum(n > 0 for n in counts)
            cut.tokens += sum(counts)
            bad = {(n, batch["__url__"][i], batch["__key__"][i]) for i, n in enumerate(counts) if n}
            if bad:  # a caption may come again, in a later epoch: named once
                cut.longest = heapq.nlargest(self.longest, bad | set(cut.longest))

    def __str__(self) -> str:
        return "\n".join(_line(name, cut) for name, cut in self.cuts.items()) or "nothing was seen"


def cut_report(batches: Iterable[Mapping[str, Any]], *, longest: int = 10) -> CutReport:
    """Return what was cut off the captions of ``batches``; see `CutReport`."""
    report = CutReport(longest)
    for batch in batches:
        report.add(batch)
    return report


def _line(name: str, cut: Cut) -> str:
    if not cut.captions:
        return f"{name}: none of {cut.seen:,} captions cut"
    share = 100 * cut.captions / cut.seen
    worst = "; ".join(f"{key!r} of {url} by {n:,}" for n, url, key in cut.longest)
    return (
        f"{name}: {cut.captions:,} of {cut.seen:,} captions cut ({share:.1f} %), "
        f"{cut.tokens:,} tokens in all; worst: {worst}"
    )
