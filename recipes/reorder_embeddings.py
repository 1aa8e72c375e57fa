"""Put the embeddings that clip-retrieval wrote into the order of the shards they were made from.

    python -m penstock.recipes.reorder_embeddings --url embeddings/ --tars 'shards/*.tar' --out new/
    torchrun --nproc_per_node 8 -m penstock.recipes.reorder_embeddings --url ... --out ...
    python -m penstock.recipes.reorder_embeddings --check true --url new/ --tars 'shards/*.tar'

``embeddings/`` has ``img_emb/img_emb_0000.npy``, ``text_emb/...`` and ``metadata/...parquet``,
which says whose embedding each row is: ``000120034`` is sample 34 of shard 12. What comes out is
``new/img_emb/img_emb_00012.npy``, as ``.join_embeddings()`` reads it: row 34 is that of sample 34,
in the type of the input. Rows of samples without an embedding are zero: readers take those for
missing. With ``--tars`` every sample of a shard has a row, behind the last embedding too.

Files belong together by the number in their names. Memory holds the keys of one file, and then the
rows of one shard at a time; ``new/.reorder`` takes 8 bytes a row until all is done. A run that was
interrupted goes on when it is started again: shards whose input is unchanged are passed over.
"""

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from ..pipes.embedding_files import tar_digits
from ..pipes.rank import place_of
from ..pipes.remote import Remote
from ..pipes.urls import expand_urls
from ._cli import cli
from .all_ranks import all_ranks
from .check_embeddings import Problems, check_folder
from .embedding_rows import numbered_shards
from .reorder_input import KeyFile, Pair, check_rows, find_pairs
from .reorder_plan import MOST_DIGITS, Plan, sort_rows
from .reorder_shard import Record, ShardWriter, common
from .row_file import RowFile
from .shard_keys import ShardKeys

AT_ONCE = 16
"""Files whose headers are read at once."""

STATE = ".reorder"
"""Folder in the output for the records of shards, and for what is there until all is done."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Put clip-retrieval's embeddings into the order of the shards, or check such a folder."""

    url: str
    """Folder with img_emb_0000.npy and the like, or with img_emb/ and text_emb/ in it; local, or
    any URL that fsspec opens. With --check, the folder that is checked."""
    out: Path | None = None
    """Folder for the reordered files: img_emb/img_emb_00000.npy and so on."""
    metadata: str | None = None
    """Folder with metadata_0000.parquet and the like; else it is looked for in url and beside it.
    """
    tars: str | list[str] | None = None
    """The shards, as ShardLister takes them. Their names tell how keys are cut and how output is
    called; rows of other shards are left out. Local ones, and remote ones with an index beside
    them, also tell which samples there are."""
    index_width: int | None = None
    """Digits at the end of a key that are the index in the shard; else the tars' names tell."""
    shard_width: int | None = None
    """Digits of the shards' numbers in the output's names; else as in the tars' names or keys."""
    key_column: str | None = None
    """The metadata's column with the keys; else image_path, or key where there is none."""
    on_duplicate: Literal["raise", "first"] = "raise"
    """What two embeddings of one sample that differ do: end the run, or the first one counts."""
    check: bool = False
    """Whether url, a folder of reordered files, is checked against the tars; nothing is written,
    and the exit status is 1 where anything is wrong."""
    cache: str | None = None
    """Folder of the cache for the tars' indexes."""

    def __post_init__(self) -> None:
        if self.index_width is not None and not 1 <= self.index_width <= MOST_DIGITS:
            raise ValueError(f"index_width must be 1 to {MOST_DIGITS}, got {self.index_width}")
        if self.shard_width is not None and self.shard_width < 1:
            raise ValueError(f"shard_width must be at least 1, got {self.shard_width}")
        if self.check and self.tars is None:
            raise ValueError("check compares a folder with its shards: name them with --tars")
        if not self.check and self.out is None:
            raise ValueError("say where the reordered files shall go with --out")


def main(cfg: Config) -> None:
    """Do this process's share; the first process sums up what all have done."""
    rank, world_size = place_of(None, None)
    if rank == 0:
        print(cfg)
    try:
        tars = {} if cfg.tars is None else numbered_shards(expand_urls(cfg.tars))
        if cfg.check:
            _check(cfg, tars, rank, world_size)
            return
        made = reorder(cfg, tars, rank, world_size)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    assert cfg.out is not None
    ranks = all_ranks(made, world_size)
    if rank == 0 or len(ranks) < world_size:
        print(_summary([one for own in ranks for one in own.shards], made, cfg.out))
    if rank == 0 and len(ranks) == world_size:
        for path in (cfg.out / STATE).glob("rows_*"):
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Done:
    """What a process has done.

    Attributes:
        shards: Name, record and whether it was there before, of each of its files.
        strangers: Rows of shards that are not among the tars.
        bare: Tars of which there is no embedding.
    """

    shards: list[tuple[str, Record, bool]]
    strangers: int
    bare: list[str]


def reorder(cfg: Config, tars: dict[int, str], rank: int = 0, world_size: int = 1) -> Done:
    """Write this process's share of the files.

    Args:
        cfg: What to do.
        tars: The shards by number; empty where they are not known.
        rank: Which process this is.
        world_size: How many there are.

    Raises:
        DataError: The input is damaged, or does not fit together.
        ValueError: There is no input, or it does not tell how to cut keys.
        OSError: A file cannot be read or written.
    """
    assert cfg.out is not None
    remote = Remote()
    kinds = find_pairs(cfg.url, cfg.metadata, remote)
    state = cfg.out / STATE
    state.mkdir(parents=True, exist_ok=True)
    done = Done([], 0, [])
    for prefix, pairs in kinds.items():
        with ThreadPoolExecutor(AT_ONCE) as pool:
            files = list(pool.map(lambda pair: RowFile(pair.npy, remote), pairs))
        common(files)
        width = cfg.index_width or _index_width(cfg, pairs, tars, remote)
        plan = _plan(cfg, pairs, files, state, width, rank, world_size)
        names = _names(cfg, plan, tars, width)
        (cfg.out / prefix).mkdir(exist_ok=True)
        writer = ShardWriter(files, plan, cfg.out / prefix, state, cfg.on_duplicate)
        keys = ShardKeys(cfg.index_width, cfg.cache)
        own = list(names.items())[rank::world_size]
        bar = tqdm(own, unit=" shards", desc=f"{prefix}, rank {rank}", disable=rank > 0)
        for shard, digits in bar:
            name = f"{prefix}_{digits}.npy"
            least = keys.least_rows(tars[shard]) if shard in tars else 0
            done.shards.append((f"{prefix}/{name}", *writer.write(name, shard, least)))
        total = sum(len(file) for file in files)
        strangers = total - sum(plan.count(shard) for shard in names)
        bare = [url for number, url in tars.items() if number not in names]
        done = Done(done.shards, done.strangers + strangers, bare)
    return done


def _plan(
    cfg: Config,
    pairs: Sequence[Pair],
    files: Sequence[RowFile],
    state: Path,
    index_width: int,
    rank: int,
    world_size: int,
) -> Plan:
    """Return which rows are whose; the processes share the files, and wait for each other's."""
    remote = Remote()
    first = rank * len(pairs) // world_size
    order = [*range(first, len(pairs)), *range(first)]
    found = {}
    for i in tqdm(order, unit=" files", desc=f"keys, rank {rank}", disable=rank > 0):
        keys = KeyFile(pairs[i].parquet, remote, cfg.key_column)
        check_rows(pairs[i], files[i], keys)
        found[i] = sort_rows(state, pairs[i], keys, index_width)
    return Plan([found[i] for i in range(len(pairs))])


def _index_width(cfg: Config, pairs: Sequence[Pair], tars: dict[int, str], remote: Remote) -> int:
    """Return how many digits behind a shard's number a key has, by the keys and the tars' names."""
    example = ""
    widths = {len(tar_digits(url)) for url in tars.values()}
    for pair in pairs:
        for part in KeyFile(pair.parquet, remote, cfg.key_column).parts():
            # Keys have this many digits, but for those of shards whose number has more.
            length = part.shortest
            numbers = part.numbers[part.numbers < 10**length]
            example = example or "".join(str(n).zfill(length) for n in numbers[:1])
            if example and not tars:
                raise _no_width(example, tars)
            fits = {
                length - width
                for width in widths
                if 1 <= length - width <= MOST_DIGITS
                and any(
                    len(tar_digits(tars[shard])) == width
                    for shard in np.unique(numbers // 10 ** (length - width)).tolist()
                    if shard in tars
                )
            }
            if len(fits) == 1:
                return fits.pop()
    raise _no_width(example, tars)


def _no_width(example: str, tars: dict[int, str]) -> ValueError:
    return ValueError(
        f"how many digits of a key are the index is not known: keys are such as {example!r}"
        + (f", and shards such as {next(iter(tars.values()))}" if tars else "")
        + "; give --index_width (4 where shards have up to 10,000 samples, img2dataset's default)"
        + ("" if tars else ", or the shards with --tars")
    )


def _names(cfg: Config, plan: Plan, tars: dict[int, str], index_width: int) -> dict[int, str]:
    """Return the digits in the name of each shard's file, in the order of the shards."""
    shards = plan.shards.tolist()
    if tars:
        shards = [shard for shard in shards if shard in tars]
        if not shards:
            raise ValueError(
                f"none of the {len(plan.shards):,} shards that keys name with their first digits "
                f"(such as {plan.shards[:1].tolist()}) is among the tars: check --index_width"
            )
        if cfg.shard_width is None:
            return {shard: tar_digits(tars[shard]) for shard in shards}
    width = cfg.shard_width or plan.shard_width(index_width)
    return {shard: str(shard).zfill(width) for shard in shards}


def _summary(shards: list[tuple[str, Record, bool]], done: Done, out: Path) -> str:
    records = [record for _, record, _ in shards]
    gaps = sum(record.rows - record.present for record in records)
    lines = [
        f"{sum(record.present for record in records):,} embeddings in {len(records):,} files in "
        f"{out}, {sum(known for _, _, known in shards):,} of them written before",
        f"{gaps:,} rows are zero since there is no embedding for them, "
        f"{sum(record.zero for record in records):,} since the embedding is zero; "
        f"{sum(record.doubled for record in records):,} embeddings came twice",
    ]
    if done.strangers:
        lines.append(f"{done.strangers:,} rows of shards that are not among the tars: left out")
    if done.bare:
        lines.append(f"{len(done.bare):,} shards have no embedding, such as {done.bare[0]}")
    return "\n".join(lines)


def _check(cfg: Config, tars: dict[int, str], rank: int, world_size: int) -> None:
    """Check the folder against this process's share of the shards, and print what all found."""
    keys = ShardKeys(cfg.index_width, cfg.cache)
    found = check_folder(cfg.url, tars, keys, rank, world_size)
    ranks = all_ranks(found, world_size)
    problems = Problems.sum(ranks) if len(ranks) == world_size else found
    if rank == 0 or len(ranks) < world_size:
        print(problems)
    if problems.count:
        sys.exit(1)


if __name__ == "__main__":
    main(cli(Config))
