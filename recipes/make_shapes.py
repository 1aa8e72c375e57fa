"""Draw captioned coloured shapes at many sizes and aspect ratios, as webdataset shards.

    python -m penstock.recipes.make_shapes --out DIR --count 1000 --samples_per_shard 250 --seed 0

The captions are true, tag-like ("a large red circle, on a blue background, at the top left") and
drawn from the seed and the sample's number alone: a small, licence-free set to try graphs and
models on. A thousand take a few seconds.
"""

import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image, ImageDraw
from tqdm import tqdm

from ..pipes.draws import Draws
from ..pipes.sample import Ref
from ._cli import cli

Size = tuple[int, int]
Format = Literal["jpg", "png", "mixed"]

COLOURS = {
    "red": (214, 40, 40),
    "orange": (247, 127, 0),
    "yellow": (252, 212, 60),
    "green": (46, 140, 70),
    "turquoise": (42, 190, 180),
    "blue": (38, 84, 190),
    "purple": (116, 52, 160),
    "pink": (244, 140, 180),
    "brown": (120, 76, 44),
    "black": (24, 24, 24),
    "grey": (140, 140, 140),
    "white": (250, 250, 250),
}
SHAPES = ("circle", "ring", "square", "diamond", "triangle", "pentagon", "hexagon", "star", "cross")
PLACES = {  # centre as fractions of (height, width)
    "at the top left": (0.27, 0.27),
    "at the top": (0.27, 0.5),
    "at the top right": (0.27, 0.73),
    "on the left": (0.5, 0.27),
    "in the middle": (0.5, 0.5),
    "on the right": (0.5, 0.73),
    "at the bottom left": (0.73, 0.27),
    "at the bottom": (0.73, 0.5),
    "at the bottom right": (0.73, 0.73),
}
SCALES = {"small": 0.22, "medium-sized": 0.34, "large": 0.46}  # of the shorter side
SUPERSAMPLE = 4
PART = ".part"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Draw captioned coloured shapes as webdataset shards."""

    out: Path
    """Folder for the shards; made if missing."""
    count: int = 1000
    """Samples."""
    samples_per_shard: int = 250
    """Samples in each shard; the last may have fewer."""
    seed: int = 0
    """The same seed gives the same bytes."""
    image_format: Format = "mixed"
    """jpg, png, or mixed: one in four is PNG."""
    overwrite: bool = False
    """Whether to replace the shards that are in the folder already."""


@dataclass(frozen=True)
class Scene:
    """What one picture shows, in the words of `COLOURS`, `SHAPES`, `PLACES` and `SCALES`."""

    shape: str
    colour: str
    background: str
    place: str = "in the middle"
    scale: str = "medium-sized"

    @property
    def caption(self) -> str:
        """The picture in words, as tags between commas."""
        article = "an" if self.background[0] in "aeiou" else "a"
        return (
            f"a {self.scale} {self.colour} {self.shape}, on {article} {self.background} background,"
            f" {self.place}"
        )


def draw_shape(scene: Scene, size: Size) -> Image.Image:
    """Return the scene as an RGB picture of ``size`` (height, width) in pixels, antialiased."""
    height, width = size
    picture = Image.new("RGB", (width, height), COLOURS[scene.background])
    side = max(1, round(SCALES[scene.scale] * min(size)))
    mask = Image.new("L", (side * SUPERSAMPLE, side * SUPERSAMPLE))
    _fill(ImageDraw.Draw(mask), scene.shape, side * SUPERSAMPLE)
    y, x = PLACES[scene.place]
    corner = round(x * width - side / 2), round(y * height - side / 2)
    picture.paste(COLOURS[scene.colour], corner, mask.reduce(SUPERSAMPLE))
    return picture


def draw_scene(draws: Draws) -> Scene:
    """Return a scene drawn at random; the colour never equals the background's."""
    colours = draws.shuffled(list(COLOURS), "shapes.colours")
    return Scene(
        shape=SHAPES[draws.below(len(SHAPES), "shapes.shape")],
        colour=colours[0],
        background=colours[1],
        place=list(PLACES)[draws.below(len(PLACES), "shapes.place")],
        scale=list(SCALES)[draws.below(len(SCALES), "shapes.scale")],
    )


def draw_size(draws: Draws, smallest: int = 160, largest: int = 640, ratio: float = 2.5) -> Size:
    """Return a random (height, width) in pixels.

    The root of the area is log-uniform between ``smallest`` and ``largest``, height / width between
    1 / ``ratio`` and ``ratio``.
    """
    side = smallest * (largest / smallest) ** draws.uniform("shapes.side")
    stretch = math.sqrt(ratio ** (2 * draws.uniform("shapes.ratio") - 1))
    return round(side * stretch), round(side / stretch)


def shape_samples(
    count: int,
    *,
    seed: int = 0,
    sizes: Sequence[Size] | None = None,
    image_format: Format = "mixed",
) -> Iterator[dict[str, Any]]:
    """Yield samples for ShardWriter: ``__key__``, ``jpg`` or ``png``, ``txt``, ``json`` (bytes).

    Args:
        count: Number of samples.
        seed: Sample i depends on the seed and i alone.
        sizes: (height, width) to draw from, in pixels; without it see `draw_size`.
        image_format: "jpg" (quality 92), "png", or "mixed": one in four is PNG.
    """
    for i in range(count):
        draws = Draws(seed, Ref(0, 0, i))
        scene = draw_scene(draws)
        size = draw_size(draws) if sizes is None else sizes[draws.below(len(sizes), "shapes.size")]
        kind = image_format
        if kind == "mixed":
            kind = "jpg" if draws.below(4, "shapes.format") else "png"
        yield make_sample(i, draw_shape(scene, size), scene.caption, kind)


def make_sample(
    index: int, picture: Image.Image, caption: str, kind: Literal["jpg", "png"] = "jpg", **more: Any
) -> dict[str, Any]:
    """Return a sample for webdataset's ShardWriter; ``more`` goes into its ``json``."""
    data = io.BytesIO()
    if kind == "jpg":
        picture.save(data, "JPEG", quality=92)
    else:
        picture.save(data, "PNG")
    record = {"caption": caption, "height": picture.height, "width": picture.width, **more}
    return {
        "__key__": f"{index:06d}",
        kind: data.getvalue(),
        "txt": caption.encode(),
        "json": json.dumps(record).encode(),
    }


def write_shards(
    samples: Iterable[dict[str, Any]],
    out: str | Path,
    *,
    samples_per_shard: int,
    prefix: str = "",
    overwrite: bool = False,
) -> list[Path]:
    """Return the paths of the shards that webdataset's ShardWriter made of ``samples``.

    A shard gets its name, ``{prefix}00000.tar`` and so on, only when it is complete.

    Args:
        samples: Dicts of bytes and ``__key__``; at least one.
        out: Folder; made if missing.
        samples_per_shard: Samples in each shard; the last may have fewer.
        prefix: Begins the shards' names.
        overwrite: Whether to delete the shards of this prefix that are in ``out`` already.

    Raises:
        FileExistsError: If ``out`` has such shards, and ``overwrite`` is not set.
        ModuleNotFoundError: If webdataset is not installed.
        ValueError: If there are no samples, or ``samples_per_shard`` is below 1.
    """
    try:
        from webdataset import ShardWriter
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "writing shards needs webdataset: pip install webdataset"
        ) from None
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard must be at least 1, got {samples_per_shard}")
    out = Path(out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    present = sorted(out.glob(f"{prefix}[0-9][0-9][0-9][0-9][0-9].tar"))
    if present and not overwrite:
        raise FileExistsError(
            f"{out} has shards already ({present[0].name}); choose another folder, or overwrite"
        )
    for path in present:
        path.unlink()
    done: list[Path] = []

    def finish(name: str) -> None:
        done.append(Path(name.removesuffix(PART)))
        os.replace(name, done[-1])

    pattern = str(out / prefix).replace("%", "%%") + ("" if prefix else os.sep)
    writer = ShardWriter(
        f"{pattern}%05d.tar{PART}",
        maxcount=samples_per_shard,
        maxsize=math.inf,
        post=finish,
        verbose=0,
        mtime=0,  # the same samples make the same bytes
    )
    try:
        for sample in samples:
            writer.write(sample)
        if not writer.total:
            raise ValueError("there are no samples to write")
    except BaseException:
        writer.post = None  # what was begun is no shard
        writer.close()
        os.unlink(writer.fname)
        raise
    writer.close()
    return done


def main(cfg: Config) -> None:
    """Write the shards and say where they are."""
    print(cfg)
    samples = shape_samples(cfg.count, seed=cfg.seed, image_format=cfg.image_format)
    shards = write_shards(
        tqdm(samples, total=cfg.count, unit=" samples"),
        cfg.out,
        samples_per_shard=cfg.samples_per_shard,
        overwrite=cfg.overwrite,
    )
    print(f"{cfg.count:,} samples in {len(shards)} shards: {shards[0]} to {shards[-1].name}")


def _fill(draw: ImageDraw.ImageDraw, shape: str, side: int) -> None:
    """Paint ``shape`` white into a square of ``side`` pixels."""
    last = side - 1
    if shape in ("circle", "ring"):
        draw.ellipse((0, 0, last, last), fill=255)
        if shape == "ring":
            inset = side * 0.22
            draw.ellipse((inset, inset, last - inset, last - inset), fill=0)
    elif shape == "square":
        draw.rectangle((0, 0, last, last), fill=255)
    elif shape == "cross":
        arm = side * 0.34
        draw.rectangle((arm, 0, last - arm, last), fill=255)
        draw.rectangle((0, arm, last, last - arm), fill=255)
    else:
        draw.polygon(_corners(shape, side / 2), fill=255)


def _corners(shape: str, radius: float) -> list[tuple[float, float]]:
    """Return the (x, y) corners of a polygon or star, centred in a square of 2 ``radius``."""
    points = {"triangle": 3, "diamond": 4, "pentagon": 5, "star": 10, "hexagon": 6}[shape]
    angles = [2 * math.pi * k / points for k in range(points)]
    radii = [radius * (0.45 if shape == "star" and k % 2 else 1) for k in range(points)]
    ys = [-r * math.cos(a) for r, a in zip(radii, angles, strict=True)]
    middle = (min(ys) + max(ys)) / 2  # a triangle's centre is not the middle of its height
    return [
        (radius + r * math.sin(a), radius + y - middle)
        for r, a, y in zip(radii, angles, ys, strict=True)
    ]


if __name__ == "__main__":
    main(cli(Config))
