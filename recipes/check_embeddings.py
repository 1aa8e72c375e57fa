"""Check a folder of per-shard embeddings against the shards: has every sample its own?"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ..pipes.errors import DataError
from ..pipes.remote import Remote
from .reorder_input import npy_files
from .row_file import RowFile
from .shard_keys import ShardKeys

KINDS = {
    "damaged_shard": "shards that cannot be read, or whose keys have no index",
    "missing_file": "shards without a file of embeddings",
    "extra_file": "files of embeddings without a shard",
    "damaged_file": "files that cannot be read",
    "unlike_file": "files of another type or dimension than most",
    "float64": "files of float64, which no model gives: gaps were filled in the wrong type",
    "missing_row": "samples behind the last row of their file",
    "zero_row": "samples whose row is zero: they have no embedding",
    "not_finite": "samples whose embedding is not finite (NaN or infinite)",
    "stray_row": "rows that hold an embedding and belong to no sample: other rows may be shifted",
}
"""Kind of a problem to its words."""


class Example(NamedTuple):
    """One problem: the file or shard, and what was found there."""

    url: str
    words: str


@dataclass
class Problems:
    """Counts what is wrong, and keeps the first examples of each kind; ``str`` is plain text.

    Attributes:
        files: Files looked at.
        rows: Rows looked at.
        kinds: Number of files of each "type [dimension]".
        most: Examples kept of each kind.
        counts: Kind to number.
        examples: Kind to examples.
    """

    files: int = 0
    rows: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    most: int = 20
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Example]] = field(default_factory=dict)

    def add(self, kind: str, url: str, words: str, count: int = 1) -> None:
        """Count problems of a kind of `KINDS` in one file or shard."""
        self.counts[kind] += count
        kept = self.examples.setdefault(kind, [])
        if len(kept) < self.most:
            kept.append(Example(url, words))

    @property
    def count(self) -> int:
        """Number of all problems."""
        return sum(self.counts.values())

    @staticmethod
    def sum(parts: Sequence["Problems"]) -> "Problems":
        """Return the problems that several processes found."""
        total = Problems()
        for part in parts:
            total.files += part.files
            total.rows += part.rows
            total.kinds += part.kinds
            total.counts += part.counts
            for kind, examples in part.examples.items():
                kept = total.examples.setdefault(kind, [])
                kept += examples[: total.most - len(kept)]
        return total

    def __str__(self) -> str:
        likes = ", ".join(f"{count:,} of {kind}" for kind, count in self.kinds.most_common())
        lines = [f"{self.files:,} files ({likes or 'none could be read'}), {self.rows:,} rows"]
        for kind, words in KINDS.items():
            if not self.counts[kind]:
                continue
            lines.append(f"{self.counts[kind]:>9,}  {words}")
            examples = self.examples[kind]
            lines += [f"{'':11}  {example.url}: {example.words}" for example in examples]
            if len(examples) == self.most:
                lines.append(f"{'':11}  and maybe more")
        lines.append("nothing is wrong" if not self.count else f"{self.count:,} problems")
        return "\n".join(lines)


def check_folder(
    folder: str, tars: dict[int, str], keys: ShardKeys, rank: int = 0, world_size: int = 1
) -> Problems:
    """Return what is wrong with a process's share of a folder's files.

    Args:
        folder: With ``img_emb_00000.npy`` and the like, or ``img_emb/`` and ``text_emb/``.
        tars: The shards by number.
        keys: Opens their indexes.
        rank: Which process this is.
        world_size: How many there are.

    Raises:
        ValueError: There are no files, or two of the same number.
        OSError: The folder cannot be listed.
    """
    remote, problems = Remote(), Problems()
    found = npy_files(folder, remote)
    for files in found.values():
        extra = [number for number in files if number not in tars]
        for number in extra[rank::world_size]:
            problems.add("extra_file", files[number], f"there is no shard {number}")
    likes = {prefix: _usual(files, remote) for prefix, files in found.items()}
    own = list(tars.items())[rank::world_size]
    for number, url in tqdm(own, unit=" shards", desc=f"rank {rank}", disable=rank > 0):
        try:
            names, rows = keys.read(url)
        except (DataError, OSError) as error:
            problems.add("damaged_shard", url, str(error))
            continue
        for prefix, files in found.items():
            if number not in files:
                problems.add("missing_file", url, f"no {prefix} file of the number {number}")
                continue
            try:
                file = RowFile(files[number], remote)
                _check_file(file, names, rows, likes[prefix], problems)
            except (DataError, OSError) as error:
                problems.add("damaged_file", files[number], str(error))
    return problems


def _usual(files: dict[int, str], remote: Remote) -> str:
    """Return the commonest kind of up to 16 files spread over all."""
    kinds: Counter[str] = Counter()
    numbers = sorted(files)
    for number in numbers[:: -(-len(numbers) // 16)]:
        try:
            kinds[_kind(RowFile(files[number], remote))] += 1
        except (DataError, OSError):
            continue  # it is named when its turn comes
    return kinds.most_common(1)[0][0] if kinds else ""


def _kind(file: RowFile) -> str:
    return f"{file.rows.native} [{file.rows.row_size}]"


def _check_file(
    file: RowFile, names: list[str], rows: np.ndarray, usual: str, problems: Problems
) -> None:
    url = file.bytes.url
    problems.files += 1
    problems.rows += len(file)
    problems.kinds[_kind(file)] += 1
    if _kind(file) != usual:
        problems.add("unlike_file", url, f"{_kind(file)}, most are {usual}")
    if file.rows.native == np.float64:
        problems.add("float64", url, "write it in the type that the model gave")
    whose = np.full(max(len(file), int(rows.max(initial=-1)) + 1), -1, np.int64)
    whose[rows] = np.arange(len(rows))
    bad: dict[str, list[int]] = {"zero_row": [], "not_finite": [], "stray_row": []}
    for start, part in file.parts():
        zero = ~part.any(1)
        wild = ~np.isfinite(part).all(1)
        owned = whose[start : start + len(part)] >= 0
        for kind, found in (
            ("zero_row", zero & owned),
            ("not_finite", wild & owned),
            ("stray_row", ~zero & ~owned),
        ):
            bad[kind] += (np.flatnonzero(found) + start).tolist()
    late = whose[len(file) :]
    bad["missing_row"] = (np.flatnonzero(late >= 0) + len(file)).tolist()
    for kind, found_rows in bad.items():
        if found_rows:
            shown = [_words(row, whose, names) for row in found_rows[:8]]
            more = f", and {len(found_rows) - 8:,} more" if len(found_rows) > 8 else ""
            problems.add(kind, url, ", ".join(shown) + more, len(found_rows))


def _words(row: int, whose: np.ndarray, names: list[str]) -> str:
    return f"row {row}" if whose[row] < 0 else names[whose[row]]
