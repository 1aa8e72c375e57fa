"""Look at a data set: batches as a model would see them, what the buckets do, and what is wrong.

    python -m penstock.recipes.inspect --url 'shards/{000..099}.tar' --out look
    python -m penstock.recipes.inspect --url photographs/ --out look
    python -m penstock.recipes.inspect --url 'shards/{000..099}.tar' --out look --batch 4711

The first two really decode every image (``--limit 10000`` for fewer); the third shows global batch
4711 of a training, whose graph is either that of the options below or, with ``--graph
train:build``, what ``build(url)`` in ``train.py`` returns.
"""

import importlib
import json
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from ..pipes import AspectRatioBucketer, Buckets, DataError, ElasticDataLoader, ManifestReader, Pipe
from ..pipes.graph import Graph
from ..pipes.sources import source_pipes
from ..pipes.tar import TarReader
from ._cli import cli
from .check import Check, check_data
from .contact_sheet import write_contact_sheet
from .findings import FAULTS, KINDS
from .open_source import is_manifest, open_source
from .write_file import write_file


@dataclass(frozen=True, kw_only=True)
class Config:
    """Show batches of a data set, report what buckets do to it, and check all samples."""

    url: str
    """Shards, a manifest, or a folder of shards or images: a path or URL, with braces or wildcards
    (in quotes)."""
    out: Path
    """Folder for the contact sheet and the report; made if missing."""
    limit: int | None = None
    """Samples to check, in shards or from rows taken at random; all where it is not given."""
    batches: int = 16
    """Batches to show."""
    batch: int | None = None
    """Number of one global batch to show instead, without a check."""
    state: Path | None = None
    """JSON of a state of the training's loader, saved before that batch: a shorter way."""
    graph: str | None = None
    """module:function whose function(url) returns the training's graph, instead of what follows."""
    resolution: int = 512
    """Side in pixels of the square whose area the buckets have."""
    batch_size: int = 8
    """Samples per batch."""
    step: int = 64
    """The sides of the buckets are multiples of it, in pixels."""
    max_ratio: float = 2.5
    """Largest ratio of a bucket's longer side to the shorter."""
    upscale: bool = True
    """Whether images may be enlarged to fill a bucket; else small ones are passed over."""
    caption: str | list[str] | None = None
    """Field of the caption, such as json.text; the first of caption, txt, text if not given. Of a
    manifest its column, or several; [] where it has none."""
    image: str | None = None
    """The images' column in a manifest; else known names are looked for."""
    image_dir: str | None = None
    """Folder or URL that a manifest's paths of images are relative to; else the manifest's."""
    crop: Literal["center", "random"] = "center"
    """Which part of an image is kept."""
    flip: float = 0.0
    """Probability of a mirror image."""
    shuffle: int = 1000
    """Samples in the shuffle window of shards; rows are shuffled over their whole length."""
    lanes: int = 1
    """Lanes of the order."""
    by: Literal["samples", "shards"] = "samples"
    """How lanes divide the data."""
    seed: int = 0
    """Seed of the order, the crops and the mirroring."""
    crop_share: float = 0.1
    """Images of which the crop takes a larger share than this are named."""
    threads: int = 4
    """Threads that decode in the check."""
    cache: str | None = None
    """Folder for indexes, unpacked and fetched shards."""


def build(cfg: Config, shards: Sequence[str] | None = None) -> Pipe:
    """Return the graph whose batches are shown.

    Args:
        cfg: What to show. Without ``batch`` each sample comes once, in one lane; a training's
            batches are numbered over many passes.
        shards: The shards that can be read, and are at hand; all of ``url`` where None.
    """
    if cfg.graph is not None:
        return _load_graph(cfg.graph, cfg.url)
    by = cfg.by if cfg.batch is not None else "shards"  # one lane: they need not be counted
    pipe, caption = _samples(cfg, shards)
    return (
        pipe.bucket_by_aspect_ratio(
            cfg.resolution,
            cfg.batch_size,
            step=cfg.step,
            max_ratio=cfg.max_ratio,
            upscale=cfg.upscale,
        )
        .lanes(cfg.lanes if cfg.batch is not None else 1, by, repeat=cfg.batch is not None)
        .decode(caption=caption, caption_default="", crop=cfg.crop, flip=cfg.flip)
        .map(only_shown)
    )


def _samples(cfg: Config, shards: Sequence[str] | None) -> tuple[Pipe, str | None]:
    """Return the samples in the order of a training, and the name of the caption's field."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*text file")  # the check says it
        source = open_source(
            shards or cfg.url,
            image=cfg.image,
            caption=cfg.caption if is_manifest(cfg.url) else None,
            image_dir=cfg.image_dir,
            seed=cfg.seed,
            shuffle=True,
            cache=cfg.cache,
        )
    if isinstance(source, ManifestReader):
        return source, None
    if isinstance(cfg.caption, list):
        raise ValueError(f"{cfg.url} are tar shards, whose caption is one field: {cfg.caption}")
    return source.shuffle(cfg.shuffle), cfg.caption


def only_shown(sample: dict[str, Any]) -> dict[str, Any]:
    """Return the image and the caption alone: other fields may be there in some samples only."""
    return {name: value for name, value in sample.items() if name in ("image", "caption")}


def main(cfg: Config) -> None:
    """Write what was asked for, and say where it is."""
    print(cfg)
    try:
        _run(cfg)
    except (DataError, IndexError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def look(url: str | os.PathLike[str], out: str | os.PathLike[str], **options: Any) -> None:
    """Write a contact sheet and a report of a data set into a folder: the recipe, from Python.

    Args:
        url: Shards, a manifest, or a folder of shards or images.
        out: Folder; made if missing.
        options: The other fields of `Config`.

    Raises:
        ValueError: There is nothing that can be read.
        OSError: Something cannot be read or written.
    """
    _run(Config(url=os.fspath(url), out=Path(out), **options))


def _run(cfg: Config) -> None:
    pipe = build(cfg)
    if cfg.batch is not None:
        show_batch(cfg, _loader(pipe), cfg.batch)
        return
    shards, manifests = _sources(pipe)
    check = check_data(
        shards,
        manifests,
        _buckets(cfg, pipe),
        caption=cfg.caption if shards and isinstance(cfg.caption, str) else None,
        cache=cfg.cache,
        limit=cfg.limit,
        threads=cfg.threads,
        crop_share=cfg.crop_share,
        seed=cfg.seed,
    )
    print(f"\n{check}\n")
    cfg.out.mkdir(parents=True, exist_ok=True)
    report = {"config": _plain(cfg), **check.as_dict()}
    where = [write_file(cfg.out / "report.json", json.dumps(report, indent=2))]
    batches = first_batches(_loader(build(cfg, check.readable)), cfg.batches)
    if batches:
        where += write_sheet(cfg, batches, check)
    else:
        print("No batch could be made, so there is no contact sheet.")
    print("\n".join(f"written: {path}" for path in where))


def show_batch(cfg: Config, loader: ElasticDataLoader, g: int) -> None:
    """Write global batch ``g`` as a contact sheet, and print its samples."""
    state = None
    if cfg.state is not None:
        state = json.loads(cfg.state.read_text(encoding="utf-8"))
    with warnings.catch_warnings():
        # Only the order matters here: this graph shows images and captions alone.
        warnings.filterwarnings("ignore", message="the work half has changed")
        batch = loader.batch_at(g, state)
    captions = batch.get("caption", [""] * len(batch["__key__"]))
    for url, key, caption in zip(batch["__url__"], batch["__key__"], captions, strict=True):
        print(f"{url}  {key}  {caption}")
    written = write_contact_sheet([batch], cfg.out, title=f"Global batch {g}", notes=cfg.url)
    print("\n".join(f"written: {path}" for path in written))


def first_batches(loader: ElasticDataLoader, count: int) -> list[dict[str, Any]]:
    """Return the first global batches, without those in which no sample is good."""
    batches: list[dict[str, Any]] = []
    for g in tqdm(range(count), unit=" batches", desc="contact sheet"):
        try:
            batches.append(loader.batch_at(g))
        except DataError as error:
            tqdm.write(f"batch {g} is not shown: {error}")
        except OSError as error:
            tqdm.write(f"no batch from {g} on is shown: {error}")
            break
        except IndexError:  # the data has ended
            break
    return batches


def write_sheet(cfg: Config, batches: list[dict[str, Any]], check: Check) -> tuple[Path, Path]:
    """Return the paths of the contact sheet, with the check on its page."""
    counts = check.findings.counts
    faults = "; ".join(f"{counts[kind]:,} {KINDS[kind]}" for kind in FAULTS if counts[kind])
    words = (
        f"{check.samples:,} samples were checked: {faults or 'no fault'}.\n"
        f"{counts['enlarged']:,} images are enlarged, {counts['cropped']:,} lose more than "
        f"{cfg.crop_share:.0%}, {counts['copy']:,} are copies."
    )
    extremes = ""
    if check.smallest is not None:
        extremes = f"Smallest: {check.smallest}\nLargest: {check.largest}"
    return write_contact_sheet(
        batches,
        cfg.out,
        title=f"The first {len(batches)} batches of {cfg.url}",
        notes="\n".join(filter(None, [words, extremes])),
        report_html=(
            f"<h2>Check</h2>\n{check.findings.to_html()}\n"
            f"<h2>Buckets</h2>\n{check.report.to_html()}"
        ),
    )


def _loader(pipe: Pipe) -> ElasticDataLoader:
    # The length of an epoch does not matter, and might take a count of all images.
    return pipe.loader(0, rank=0, world_size=1, epoch_batches=1 << 40, on_error="skip")


def _load_graph(name: str, url: str) -> Pipe:
    module, _, function = name.partition(":")
    pipe = getattr(importlib.import_module(module), function or "build")(url)
    if not isinstance(pipe, Pipe):
        raise TypeError(f"{name} must return a pipe, got {type(pipe).__name__}")
    return pipe


def _sources(pipe: Pipe) -> tuple[list[str], list[ManifestReader]]:
    """Return the shards of all sources of a graph, and its manifests."""
    readers = source_pipes(Graph.of(pipe).top)
    shards = [
        url for reader in readers if isinstance(reader, TarReader) for url in reader.source.urls
    ]
    return shards, [reader for reader in readers if isinstance(reader, ManifestReader)]


def _buckets(cfg: Config, pipe: Pipe) -> Buckets:
    """Return the graph's buckets; those of the options where it has none."""
    for step in Graph.of(pipe).steps:
        if isinstance(step, AspectRatioBucketer):
            return step.buckets
    return Buckets.make(cfg.resolution, step=cfg.step, max_ratio=cfg.max_ratio, upscale=cfg.upscale)


def _plain(cfg: Config) -> dict[str, Any]:
    values = {f.name: getattr(cfg, f.name) for f in fields(cfg)}
    return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}


if __name__ == "__main__":
    main(cli(Config))
