"""Write captions for images with a model, as a manifest that `ManifestReader` reads.

    python -m penstock.recipes.caption --url photographs/ --model MODEL --out captions.jsonl
    torchrun --nproc_per_node 8 -m penstock.recipes.caption --url ... --model ... --out ...

``MODEL`` is a folder or a hub id that transformers' AutoModelForImageTextToText takes: BLIP, GIT,
LLaVA, Qwen-VL, ... The likeliest token is taken each time, so that a run can be repeated. A run
that was interrupted goes on when it is started again: images that have a caption are passed over,
whichever model wrote it. What cannot be read is named, and tried again the next time.
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from ..pipes import DataError, Extent, ManifestReader
from ..pipes.decode_image import DecodePolicy, decode
from ..pipes.draws import hash64
from ..pipes.file_cache import RemoteFile
from ..pipes.manifest_source import ManifestSource
from ..pipes.rank import place_of
from ..pipes.read import read_value
from ..pipes.table_folder import Missing
from ._cli import cli
from .all_ranks import all_ranks
from .caption_file import append, merge_parts, open_part, read_captions
from .captioner import Captioner


@dataclass(frozen=True, kw_only=True)
class Config:
    """Write captions for images with a model of transformers."""

    url: str
    """A folder of images, or a manifest; captions that it has are not looked at."""
    model: str
    """A folder, or the id of a model on the Hugging Face hub."""
    out: Path
    """The manifest, .jsonl; paths of images in its folder are relative to it."""
    prompt: str | None = None
    """What a model that chats is asked; what any other's captions begin with."""
    max_new_tokens: int = 64
    """Most tokens of a caption."""
    batch_size: int = 8
    """Images at a time."""
    temperature: float = 0.0
    """0 takes the likeliest token each time; above, tokens are drawn."""
    seed: int = 0
    """Seed of the tokens that are drawn; which come depends on the batches too."""
    device: str = "auto"
    """Where the model runs; auto is this process's GPU, or the CPU where there is none."""
    on_error: Literal["raise", "skip"] = "skip"
    """What an image that is missing or cannot be decoded does."""
    image: str | None = None
    """The images' column in a manifest; else known names are looked for."""
    image_dir: str | None = None
    """Folder or URL that paths of images are relative to; else the manifest's."""
    cache: str | None = None
    """Folder of the cache for what is fetched."""

    def __post_init__(self) -> None:
        if self.out.suffix != ".jsonl":
            raise ValueError(f"out must end in .jsonl, got {self.out}")
        if self.batch_size < 1 or self.max_new_tokens < 1:
            raise ValueError(
                "batch_size and max_new_tokens must be at least 1, got "
                f"{self.batch_size} and {self.max_new_tokens}"
            )


class ImageList:
    """The images of a folder or a manifest, by number.

    Args:
        cfg: Says where they are.

    Raises:
        FileNotFoundError: There is nothing.
        ValueError: It is nothing that can be read.
    """

    def __init__(self, cfg: Config) -> None:
        pipe = ManifestReader(
            os.path.abspath(cfg.url) if os.path.exists(cfg.url) else cfg.url,
            image=cfg.image,
            caption=(),
            image_dir=cfg.image_dir,
            shuffle=False,
            cache=cfg.cache,
        )
        self._source: ManifestSource = pipe.open(False)
        self._count = pipe.shard_count()
        self._folder = str(cfg.out.absolute().parent) + os.sep

    def __len__(self) -> int:
        return self._count

    def name(self, i: int) -> str:
        """Return an image's name for the manifest: relative to its folder, absolute, or a URL.

        Raises:
            DataError: The row has no image.
            ValueError: The image has no place of its own.
        """
        image = self._source.sample(i, 0)["image"]
        if isinstance(image, Extent):
            return os.path.abspath(image.path).removeprefix(self._folder)
        if isinstance(image, RemoteFile):
            return image.url
        if isinstance(image, Missing):
            image.read()
        url, _ = self._source.name(i, 0)
        raise ValueError(
            f"{url}: the image lies inside the manifest, where a manifest of captions cannot name "
            "it: write the images to files first"
        )

    def pixels(self, i: int) -> torch.Tensor:
        """Return an image, uint8 [3, H, W]; raises a DataError where it cannot be decoded."""
        return decode(read_value(self._source.sample(i, 0)["image"]), DecodePolicy())


def main(cfg: Config) -> None:
    """Write this process's captions; the first process makes one manifest of all."""
    rank, world_size = place_of(None, None)
    if rank == 0:
        print(cfg)
    try:
        images = ImageList(cfg)
        report = write_captions(cfg, images, rank, world_size)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    ranks = all_ranks(report, world_size)
    failed = [line for _, lines in ranks for line in lines]
    if len(ranks) < world_size:
        print(f"{report[0]:,} captions written to a part of {cfg.out}")
        print("No process knows of the others: run this once more, alone, to put them together")
    elif rank == 0:
        count = merge_parts(cfg.out, _names(images))
        written = sum(number for number, _ in ranks)
        print(
            f"{count:,} captions in {cfg.out}, {written:,} of them new; {len(failed):,} images "
            f"without one{':' if failed else ''}"
        )
    if rank == 0 or len(ranks) < world_size:
        print(*(f"  {line}" for line in failed), sep="\n")


def write_captions(
    cfg: Config, images: ImageList, rank: int = 0, world_size: int = 1
) -> tuple[int, list[str]]:
    """Append captions to this process's part; return how many, and what cannot be captioned.

    Raises:
        DataError: An image is bad, and bad ones are not to be passed over.
        ValueError: Lines of the manifest are not what they should be.
        OSError: A file cannot be read or written.
    """
    cfg.out.parent.mkdir(parents=True, exist_ok=True)
    failed: list[str] = []
    written = 0
    done = read_captions(cfg.out).keys()
    todo: list[tuple[int, str]] = []
    for i in range(rank, len(images), world_size):
        try:
            if (name := images.name(i)) not in done:
                todo.append((i, name))
        except DataError as error:
            _fail(cfg, failed, str(error))
    if not todo:
        return 0, failed
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    captioner = Captioner(
        cfg.model,
        prompt=cfg.prompt,
        max_new_tokens=cfg.max_new_tokens,
        device=device if cfg.device == "auto" else cfg.device,
        temperature=cfg.temperature,
    )
    with (
        open_part(cfg.out, rank) as file,
        tqdm(total=len(todo), unit=" images", desc=f"rank {rank}", disable=rank > 0) as bar,
    ):
        for batch in _batches(cfg, images, todo, failed):
            seed = hash64(cfg.seed, batch[0][0]) >> 1
            captions = captioner([pixels for _, _, pixels in batch], seed)
            for (_, name, _), caption in zip(batch, captions, strict=True):
                if caption:
                    append(file, name, caption)
                    written += 1
                else:
                    _fail(cfg, failed, f"{name}: the model wrote nothing")
            bar.update(written + len(failed) - bar.n)
    return written, failed


def _batches(
    cfg: Config, images: ImageList, todo: list[tuple[int, str]], failed: list[str]
) -> Iterator[list[tuple[int, str, torch.Tensor]]]:
    """Yield batches of number, name and pixels, without the images that cannot be decoded."""
    batch: list[tuple[int, str, torch.Tensor]] = []
    for i, name in todo:
        try:
            batch.append((i, name, images.pixels(i)))
        except DataError as error:
            _fail(cfg, failed, str(error) if name in str(error) else f"{name}: {error}")
        if len(batch) == cfg.batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _fail(cfg: Config, failed: list[str], line: str) -> None:
    if cfg.on_error == "raise":
        raise DataError(line)
    failed.append(line)
    tqdm.write(f"without a caption: {line}", file=sys.stderr)


def _names(images: ImageList) -> Iterator[str]:
    for i in range(len(images)):
        try:
            yield images.name(i)
        except DataError:
            continue


if __name__ == "__main__":
    main(cli(Config))
