"""What a check of a data set found: counts, and the first examples by name."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any, NamedTuple

KINDS = {
    "damaged_shard": "shards that cannot be read",
    "corrupt_image": "images that cannot be decoded",
    "no_image": "samples without an image",
    "no_caption": "captions missing or unreadable",
    "empty_caption": "empty captions",
    "lone_caption": "text files without an image of their name",
    "copy": "images that are copies of an earlier one, byte for byte",
    "duplicate_key": "keys that several shards have (told apart by shard, but not by a join)",
    "refused": "images too small for every bucket",
    "enlarged": "images enlarged to fill their bucket",
    "cropped": "images that lose much to the crop",
}
"""Kind of a finding to its words, the gravest first."""

FAULTS = ("damaged_shard", "corrupt_image", "no_image", "no_caption", "empty_caption")
"""The kinds that a data set should not have; the others are for its owner to judge."""


class Example(NamedTuple):
    """One finding.

    Attributes:
        shard: URL of the shard, or of the manifest and the row, or the folder.
        key: Key of the sample; empty where it is the whole shard.
        reason: What was found, in words.
    """

    shard: str
    key: str
    reason: str


@dataclass
class Findings:
    """Counts what was found, and keeps the first examples of each kind.

    ``str(findings)`` is plain text.

    Attributes:
        most: Examples kept of each kind.
    """

    most: int = 5
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Example]] = field(default_factory=dict)

    def add(self, kind: str, shard: str, key: str, reason: str) -> None:
        """Count one finding of a kind of `KINDS`."""
        self.counts[kind] += 1
        self.example(kind, shard, key, reason)

    def example(self, kind: str, shard: str, key: str, reason: str) -> None:
        """Keep an example of what is counted elsewhere, while there is room."""
        kept = self.examples.setdefault(kind, [])
        if len(kept) < self.most:
            kept.append(Example(shard, key, reason))

    @property
    def faults(self) -> int:
        """Number of findings that a data set should not have."""
        return sum(self.counts[kind] for kind in FAULTS)

    def as_dict(self) -> dict[str, Any]:
        """Return all kinds with their counts and examples, as JSON holds them."""
        return {
            kind: {
                "count": self.counts[kind],
                "examples": [e._asdict() for e in self.examples.get(kind, [])],
            }
            for kind in KINDS
        }

    def __str__(self) -> str:
        lines = []
        for kind, words in KINDS.items():
            count = self.counts[kind]
            lines.append(f"{count:>9,}  {words}")
            if not count:
                continue
            examples = self.examples.get(kind, [])
            lines += [f"{'':11}  {e.shard}  {e.key}  {e.reason}" for e in examples]
            if count > len(examples):
                lines.append(f"{'':11}  and {count - len(examples):,} more")
        return "\n".join(lines)

    def to_html(self) -> str:
        """Return an HTML fragment: a table of kinds, counts and examples."""
        rows = []
        for kind, words in KINDS.items():
            examples = self.examples.get(kind, []) if self.counts[kind] else []
            lines = "<br>".join(escape(f"{e.shard}  {e.key}  {e.reason}") for e in examples)
            rows.append(
                f"<tr><td>{self.counts[kind]:,}</td>"
                f'<td style="text-align:left">{escape(words)}<br><small>{lines}</small></td></tr>'
            )
        return '<table class="findings">\n' + "\n".join(rows) + "\n</table>"


@dataclass(frozen=True)
class Extreme:
    """The smallest or the largest image.

    Attributes:
        height: Pixels.
        width: Pixels.
        shard: URL of the shard.
        key: Key of the sample.
    """

    height: int
    width: int
    shard: str
    key: str

    def __str__(self) -> str:
        return f"{self.height}x{self.width}  {self.shard}  {self.key}"

    def as_dict(self) -> dict[str, Any]:
        """Return the values as JSON holds them."""
        return asdict(self)
