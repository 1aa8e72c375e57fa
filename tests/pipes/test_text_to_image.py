"""A data set in one call, and a look at it."""

import warnings

import pytest
import torch
from torchvision.transforms import v2

from penstock.pipes import DataError, ManifestReader, text_to_image_dataset
from penstock.pipes.verify import fingerprints, verify_resume


@pytest.fixture
def data(tmp_path, make_jpeg):
    """A TSV without a line of names, as torchtune's proposal has it, and its five images."""
    for i in range(5):
        (tmp_path / f"{i}.jpg").write_bytes(make_jpeg(64 + 8 * i, 96, i))
    lines = [f"{i}.jpg\ta cat, no {i}, red, round" for i in range(5)]
    (tmp_path / "data.tsv").write_text("\n".join(lines))
    return tmp_path


def to_model(batch):
    return {"pixels": batch["image"].float() / 127.5 - 1, "text": batch["caption"]}


def test_one_call_gives_batches(data):
    pipe = text_to_image_dataset(data / "data.tsv", to_model, batch_size=4, size=(32, 48), flip=0.5)
    loader = pipe.loader(4)
    assert len(loader) == 1
    (batch,) = loader
    loader.close()
    assert batch["pixels"].shape == (4, 3, 32, 48)
    assert batch["pixels"].min() >= -1
    assert all(text.startswith("a cat, no") for text in batch["text"])


def test_buckets_by_default(data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader = text_to_image_dataset(data / "data.tsv", batch_size=2, resolution=256).loader()
    shapes = {tuple(batch["image"].shape) for _ in range(4) for batch in loader}
    assert {shape[:2] for shape in shapes} == {(2, 3)}
    assert len(shapes) > 1
    assert all(height % 64 == width % 64 == 0 for _, _, height, width in shapes)


def shout(caption):
    return caption.upper()


def test_images_and_captions_have_transforms_of_their_own(data):
    pipe = text_to_image_dataset(
        data / "data.tsv",
        to_model,
        batch_size=5,
        size=32,
        image_transform=v2.ColorJitter(brightness=0.5),
        caption_transform=shout,
        shuffle_caption=1.0,
        drop_caption=0.3,
        prefix="photo of ",
        suffix="!",
        trigger="sks",
    )
    plain = text_to_image_dataset(data / "data.tsv", to_model, batch_size=5, size=32)
    batch, bare = next(iter(pipe.loader())), next(iter(plain.loader()))
    assert batch["__key__"] == bare["__key__"]
    assert not torch.equal(batch["pixels"], bare["pixels"])
    texts = [text for text in batch["text"] if text]
    assert texts
    for text in texts:
        assert text.startswith("SKS, PHOTO OF ")
        assert text.endswith("!")
    report = verify_resume(
        lambda w, r, n: pipe.loader(w, rank=r, world_size=n), steps=2, legs=((0, 1), (1, 2))
    )
    assert report.batches


def noisy(caption, rng):
    return f"{caption} {rng.integers(1000)}"


def test_a_transform_may_take_a_generator(data):
    pipe = text_to_image_dataset(data / "data.tsv", batch_size=5, size=16, caption_transform=noisy)
    one, other = next(iter(pipe.loader())), next(iter(pipe.loader()))
    assert one["caption"] == other["caption"]
    assert len({text.rpartition(" ")[2] for text in one["caption"]}) > 1


def test_a_folder_without_captions(data):
    (data / "data.tsv").unlink()
    with pytest.raises(
        ValueError, match=r"has no captions: .*caption_default='a photo.*caption=()"
    ):
        text_to_image_dataset(data, batch_size=5, size=16)
    (batch,) = text_to_image_dataset(data, batch_size=5, size=16, caption=()).loader()
    assert "caption" not in batch
    default = {"caption_default": "a photograph", "prefix": "see "}
    (batch,) = text_to_image_dataset(data, batch_size=5, size=16, **default).loader()
    assert batch["caption"] == ["see a photograph"] * 5
    (batch,) = text_to_image_dataset(data, batch_size=5, size=16, trigger="a sks cat").loader()
    assert batch["caption"] == ["a sks cat"] * 5
    with pytest.raises(ValueError, match="has no captions to change"):
        text_to_image_dataset(data, size=16, caption=(), prefix="x")


def test_a_folder_with_some_captions(data):
    (data / "data.tsv").unlink()
    for i in range(4):
        (data / f"{i}.txt").write_text(f"no {i}")
    with pytest.raises(DataError, match=r"4.txt, or give caption_default='' to .*dataset\(\)"):
        next(iter(text_to_image_dataset(data, batch_size=5, size=16).loader()))
    pipe = text_to_image_dataset(data, batch_size=5, size=16, caption_default="")
    assert sorted(next(iter(pipe.loader()))["caption"]) == ["", *(f"no {i}" for i in range(4))]


def test_what_is_kept_in_memory_changes_nothing(data):
    def batches(keep):
        pipe = text_to_image_dataset(
            data / "data.tsv", batch_size=3, size=24, crop="random", keep_in_memory=keep
        )
        loader = pipe.loader(epoch_batches=6)
        return [fingerprints(batch) for batch in loader], pipe, loader.state_dict()

    kept, pipe, state = batches(1 << 20)
    bare, other, other_state = batches(0)
    assert kept == bare
    assert state == other_state
    assert len(pipe.kept) == 5
    assert pipe.kept.held <= 5 * 4 * 96 * 96
    assert other.kept is None
    # More images than could fit: keeping them would only cost.
    assert text_to_image_dataset(data / "data.tsv", size=512, keep_in_memory=1 << 20).kept is None


def test_a_preview_is_what_training_gets(data):
    pipe = text_to_image_dataset(
        data / "data.tsv", to_model, batch_size=2, size=24, crop="random", drop_caption=0.5
    )
    bare = text_to_image_dataset(
        data / "data.tsv", batch_size=2, size=24, crop="random", drop_caption=0.5
    )
    samples = pipe.preview(5)
    assert len(samples) == 5
    batches = bare.loader(epoch_batches=3)
    expected = [
        (image, caption, key)
        for batch in batches
        for image, caption, key in zip(
            batch["image"], batch["caption"], batch["__key__"], strict=True
        )
    ]
    for sample, (image, caption, key) in zip(samples, expected, strict=False):
        assert torch.equal(sample["image"], image)
        assert (sample["caption"], sample["__key__"]) == (caption, key)


def test_a_preview_of_what_is_not_finished(data):
    reader = ManifestReader(data / "data.tsv", shuffle=False)
    assert [s["__key__"] for s in reader.preview(2)] == ["0.jpg", "1.jpg"]
    assert [s["__key__"] for s in reader.batch(2).preview(3)] == ["0.jpg", "1.jpg", "2.jpg"]
    assert len(reader.batch(2).lanes(1, repeat=False).preview(9)) == 5
    whole = reader.batch(2).lanes(1, repeat=False).decode().preview(9)
    assert [tuple(s["image"].shape) for s in whole] == [(3, 64 + 8 * i, 96) for i in range(5)]
