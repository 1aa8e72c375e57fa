"""Cut the photographs that scikit-image and scikit-learn ship to many sizes, as webdataset shards.

    python -m penstock.recipes.photographs --out DIR --count 400 --samples_per_shard 100 --seed 0

The photographs lie inside the two packages' wheels (pip install scikit-image scikit-learn): nothing
is downloaded.
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ..pipes.draws import Draws
from ..pipes.sample import Ref
from ._cli import cli
from .make_shapes import make_sample, write_shards

SHORTEST = 200  # pixels: the shortest side of a cut

# (package, file in it) -> tags; what a cut shows most surely stands first
CAPTIONS = {
    ("skimage", "data/astronaut.png"): (
        "an astronaut in an orange space suit, portrait of a smiling woman, a flag on the left, "
        "a model of the space shuttle, a white helmet"
    ),
    ("skimage", "data/chelsea.png"): (
        "a tabby cat, close-up of its face, green eyes, a pink nose, white whiskers"
    ),
    ("skimage", "data/coffee.png"): (
        "a cup of espresso, seen from above, a red saucer, a steel spoon, a wooden table"
    ),
    ("skimage", "data/hubble_deep_field.jpg"): (
        "a deep field of galaxies, black sky, tiny spirals and ellipses, astronomy"
    ),
    ("skimage", "data/ihc.png"): (
        "a stained section of tissue, microscopy, brown glands, blue cell nuclei, white background"
    ),
    ("skimage", "data/motorcycle_left.png"): (
        "a red motorcycle, in a garage, a black seat, shelves with boxes, a wooden bench"
    ),
    ("skimage", "data/motorcycle_right.png"): (
        "a red motorcycle, in a garage, a black seat, shelves with boxes, seen from the right"
    ),
    ("skimage", "data/retina.jpg"): (
        "the retina of an eye, medical photograph, red blood vessels, a bright optic disc"
    ),
    ("skimage", "data/rocket.jpg"): (
        "a white rocket on its launch pad, dusk, dark blue sky, floodlights, lattice towers"
    ),
    ("sklearn", "datasets/images/china.jpg"): (
        "a Chinese pagoda above a lake, green and red roofs, trees, hazy sky, summer"
    ),
    ("sklearn", "datasets/images/flower.jpg"): (
        "an orange dahlia in bloom, dark green leaves, blurred background, a second flower below"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Cut photographs to many sizes as webdataset shards."""

    out: Path
    """Folder for the shards; made if missing."""
    count: int = 400
    """Samples."""
    samples_per_shard: int = 100
    """Samples in each shard; the last may have fewer."""
    seed: int = 0
    """The same seed gives the same cuts."""
    overwrite: bool = False
    """Whether to replace the shards that are in the folder already."""


def find_photographs() -> dict[Path, str]:
    """Return path and caption of each photograph that is installed; the packages stay unimported.

    Raises:
        FileNotFoundError: If there is none.
    """
    found = {}
    for (package, name), caption in CAPTIONS.items():
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            if (path := Path(folder, name)).is_file():
                found[path] = caption
    if not found:
        raise FileNotFoundError(
            "no photographs: they are inside two packages, pip install scikit-image scikit-learn"
        )
    return found


def photograph_samples(count: int, *, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield samples for webdataset's ShardWriter: ``__key__``, ``jpg``, ``txt``, ``json``.

    Each is a cut of a photograph, JPEG of quality 92, with sides from 200 pixels to the whole; one
    in eight is whole.

    Args:
        count: Number of samples.
        seed: Sample i depends on the seed, i and the photographs that are there.
    """
    photographs = find_photographs()
    opened = {path: Image.open(path).convert("RGB") for path in photographs}
    paths = list(photographs)
    for i in range(count):
        draws = Draws(seed, Ref(0, 0, i))
        path = paths[draws.below(len(paths), "photographs.which")]
        box = cut_box(opened[path].height, opened[path].width, draws)
        caption = f"{photographs[path]}, {_format_words(box)}"
        yield make_sample(i, opened[path].crop(box), caption, source=path.name, box=box)


def cut_box(height: int, width: int, draws: Draws) -> tuple[int, int, int, int]:
    """Return a random cut's (left, top, right, bottom) in pixels; one in eight is the whole."""
    if not draws.below(8, "photographs.whole"):
        return 0, 0, width, height
    h = _between(min(SHORTEST, height), height, "photographs.height", draws)
    w = _between(min(SHORTEST, width), width, "photographs.width", draws)
    top = _between(0, height - h, "photographs.top", draws)
    left = _between(0, width - w, "photographs.left", draws)
    return left, top, left + w, top + h


def main(cfg: Config) -> None:
    """Write the shards and say where they are."""
    print(cfg)
    shards = write_shards(
        tqdm(photograph_samples(cfg.count, seed=cfg.seed), total=cfg.count, unit=" samples"),
        cfg.out,
        samples_per_shard=cfg.samples_per_shard,
        overwrite=cfg.overwrite,
    )
    print(f"{cfg.count:,} samples in {len(shards)} shards: {shards[0]} to {shards[-1].name}")


def _between(low: int, high: int, purpose: str, draws: Draws) -> int:
    return low + draws.below(high - low + 1, purpose)


def _format_words(box: tuple[int, int, int, int]) -> str:
    ratio = (box[3] - box[1]) / (box[2] - box[0])
    if ratio > 1.1:
        return "upright format"
    return "wide format" if ratio < 1 / 1.1 else "square format"


if __name__ == "__main__":
    main(cli(Config))
