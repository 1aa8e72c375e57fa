"""Images land in the batch with the geometry that was really made.

The images are gradients: red runs from 0 to 255 along the columns, green along the rows. So the
region that an output shows can be measured in its pixels, and a wrong crop changes a number.
"""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from penstock.pipes import DataError, Decoder, ShardLister
from penstock.pipes.slot import BatchMemory

HEIGHT, WIDTH = 150, 210


def gradient(height=HEIGHT, width=WIDTH, alpha=False):
    y, x = np.mgrid[0:height, 0:width]
    red, green = x * 255 / (width - 1), y * 255 / (height - 1)
    levels = [red, green, red * 0 + 77] + ([255 - red] if alpha else [])
    return Image.fromarray(np.stack(levels, 2).round().astype(np.uint8))


def encode(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 97, "subsampling": 0} if kind == "JPEG" else {}))
    return file.getvalue()


def measured(image, original):
    """Return (top, left, height, width) of the region of the original that an image shows."""
    found = []
    for channel, axis, length in ((1, 1, original[0]), (0, 2, original[1])):
        levels = image[channel].double().mean(dim=2 - axis).numpy()[2:-2]
        places = np.arange(2, len(levels) + 2) + 0.5
        slope, start = np.polyfit(places, levels * (length - 1) / 255 + 0.5, 1)
        found.append((start, slope * (len(levels) + 4)))
    (top, height), (left, width) = found
    return top, left, height, width


@pytest.fixture
def reader(make_tar):
    """Return a function from fields of one image each to a reader of them."""

    def make(*images, ext="png"):
        samples = [(f"{i:03d}", {ext: data}) for i, data in enumerate(images)]
        return ShardLister(make_tar(samples), shuffle=False).read_tar()

    return make


def check_geometry(batch, original, tolerance):
    """Compare the geometry fields with what the pixels show."""
    for i, image in enumerate(batch["image"]):
        target = image.shape[1:]
        assert batch["original_size"][i].tolist() == list(original)
        assert batch["target_size"][i].tolist() == list(target)
        flipped = bool(batch["flipped"][i])
        top, left, height, width = measured(image.flip(2) if flipped else image, original)
        if flipped:
            left = original[1] - left - width
        expected = top * target[0] / height, left * target[1] / width
        found = batch["crop_top_left"][i].tolist()
        assert abs(found[0] - expected[0]) <= tolerance, f"top of image {i}"
        assert abs(found[1] - expected[1]) <= tolerance, f"left of image {i}"


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("size", [48, (40, 72), (72, 40), (150, 210)])
@pytest.mark.parametrize("crop", ["center", "random", "resized"])
def test_geometry_is_that_of_the_pixels(kind, size, crop, reader, make_batch):
    pipe = reader(*[encode(gradient(), kind)] * 8, ext=kind.lower())
    more = {"ratio": (0.6, 1.6), "scale": (0.3, 1.0)} if crop == "resized" else {}
    batch = make_batch(pipe.batch(8).decode(size, crop=crop, flip=0.5, **more)).batch
    target = (48, 48) if size == 48 else size
    assert batch["image"].shape == (8, 3, *target)
    assert batch["image"].dtype == torch.uint8
    assert set(batch["flipped"].tolist()) == {True, False}
    for name in ("original_size", "crop_top_left", "target_size"):
        assert batch[name].dtype == torch.int64
        assert batch[name].shape == (8, 2)
    check_geometry(batch, (HEIGHT, WIDTH), 1.6)
    if crop != "center" and size != (150, 210):
        assert len({tuple(t.tolist()) for t in batch["crop_top_left"]}) > 4


def test_the_center_crop_by_hand(reader, make_batch):
    # 150 x 210 to cover 48 x 48: scale 0.32, 48 x 67.2, of which 9.6 are cut off on the left.
    batch = make_batch(reader(encode(gradient())).batch(1).decode(48)).batch
    assert batch["crop_top_left"].tolist() == [[0, 10]]
    top, left, height, width = measured(batch["image"][0], (HEIGHT, WIDTH))
    assert abs(top) < 0.7
    assert abs(left - 30) < 0.7
    assert abs(height - 150) < 1.5
    assert abs(width - 150) < 1.5
    # A tall target: 72 x 40 from 150 x 210, scale 0.48, 100.8 wide, 30.4 off.
    batch = make_batch(reader(encode(gradient())).batch(1).decode((72, 40))).batch
    assert batch["image"].shape == (1, 3, 72, 40)
    assert batch["crop_top_left"].tolist() == [[0, 30]]


@pytest.mark.parametrize("target", [(48, 48), (40, 72), (72, 40)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_pixels_are_those_of_pillow(target, kind, reader, make_batch):
    photo = Image.fromarray(
        np.random.default_rng(3).integers(0, 256, (10, 14, 3), dtype=np.uint8)
    ).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    data = encode(photo, kind)
    batch = make_batch(reader(data, ext=kind.lower()).batch(1).decode(target)).batch
    scale = max(target[0] / HEIGHT, target[1] / WIDTH)
    top, left = (HEIGHT - target[0] / scale) / 2, (WIDTH - target[1] / scale) / 2
    box = (left, top, WIDTH - left, HEIGHT - top)
    expected = Image.open(io.BytesIO(data)).resize(target[::-1], Image.Resampling.BICUBIC, box)
    found = batch["image"][0].permute(1, 2, 0).numpy().astype(int)
    assert abs(found - np.asarray(expected)).mean() < (1e-9 if kind == "PNG" else 3)
    # A shift by one pixel is far worse.
    assert abs(found[:, 1:] - np.asarray(expected, int)[:, :-1]).mean() > 5


def test_a_flip_is_the_mirror_image_of_the_same_crop(reader, make_batch):
    source = reader(*[encode(gradient())] * 6)
    plain, mirrored = (
        make_batch(source.batch(6).decode((40, 40), crop="random", flip=p)).batch for p in (0, 1)
    )
    assert plain["flipped"].tolist() == [False] * 6
    assert mirrored["flipped"].tolist() == [True] * 6
    assert torch.equal(plain["image"].flip(3), mirrored["image"])
    # What is cut off on the left of one is cut off on the right of the other: 56 - 40 in all.
    lefts = plain["crop_top_left"][:, 1] + mirrored["crop_top_left"][:, 1]
    assert all(abs(left - 16) <= 1 for left in lefts.tolist())


def test_flips_and_crops_are_drawn_evenly(reader, make_batch):
    pipe = reader(*[encode(gradient(40, 80))] * 300).batch(300)
    batch = make_batch(pipe.decode(20, crop="random", flip=0.25)).batch
    assert 50 < int(batch["flipped"].sum()) < 100
    lefts = batch["crop_top_left"][:, 1].double()
    assert (lefts.min(), lefts.max()) == (0, 20)
    assert abs(lefts.mean() - 10) < 1.5
    assert (batch["crop_top_left"][:, 0] == 0).all()
    again = make_batch(pipe.decode(20, crop="random", flip=0.25)).batch
    assert torch.equal(again["image"], batch["image"])
    later = make_batch(pipe.decode(20, crop="random", flip=0.25), 1).batch
    assert not torch.equal(later["crop_top_left"], batch["crop_top_left"])
    other = ShardLister(batch["__url__"][0], seed=1, shuffle=False).read_tar().batch(300)
    reseeded = make_batch(other.decode(20, crop="random", flip=0.25)).batch
    assert not torch.equal(reseeded["flipped"], batch["flipped"])


def test_a_flip_does_not_go_with_a_place(reader, make_batch):
    pipe = reader(*[encode(gradient(60, 20))] * 200, *[encode(gradient(20, 60))] * 200).batch(400)
    batch = make_batch(pipe.decode(20, crop="random", flip=0.5)).batch
    top, left = batch["crop_top_left"].double().T
    left = torch.where(batch["flipped"], 40 - left, left)  # in the image that was not flipped
    for part, places in ((slice(0, 200), top), (slice(200, 400), left)):
        flips, places = batch["flipped"][part], places[part]
        assert abs(places[flips].mean() - places[~flips].mean()) < 7  # 4 sigma


def test_resized_crops_have_the_shares_asked_for(reader, make_batch):
    pipe = reader(*[encode(gradient(100, 100))] * 60).batch(60)
    batch = make_batch(pipe.decode(50, crop="resized", scale=(0.25, 0.36))).batch
    for image in batch["image"]:
        _, _, height, width = measured(image, (100, 100))
        assert 48 < height < 62
        assert abs(height - width) < 3  # the target's own ratio
    stretched = make_batch(pipe.decode(50, crop="resized", scale=(0.2, 0.3), ratio=(2, 2.2))).batch
    for image in stretched["image"]:
        _, _, height, width = measured(image, (100, 100))
        assert 1.8 < width / height < 2.4  # width / height, as in torchvision


def test_buckets_give_the_size(reader, make_batch):
    pipe = reader(*[encode(gradient())] * 4)
    batch = make_batch(pipe.bucket_by_aspect_ratio(64, 4, step=16).decode(crop="random")).batch
    height, width = batch["image"].shape[2:]
    assert (height, width) == (48, 80)
    check_geometry(batch, (HEIGHT, WIDTH), 1.6)
    assert "__image_size__" not in batch


def test_images_land_in_the_batch_without_a_copy(reader, make_batch, monkeypatch):
    made = []
    empty = BatchMemory._empty
    monkeypatch.setattr(BatchMemory, "_empty", lambda *args: made.append(empty(*args)) or made[-1])
    pipe = reader(*[encode(gradient(alpha=True))] * 3)
    batch = make_batch(pipe.batch(3).decode(32, alpha="mask")).batch
    assert {batch[f].data_ptr() for f in ("image", "mask")} == {m.data_ptr() for m in made}
    assert len(made) == 2
    assert batch["image"].is_contiguous()
    # A function that replaces the image has its own result in the batch.
    changed = make_batch(pipe.batch(3).decode(32).map(inverted)).batch
    plain = make_batch(pipe.batch(3).decode(32)).batch
    assert torch.equal(changed["image"], 255 - plain["image"])


def inverted(sample):
    return {**sample, "image": 255 - sample["image"]}


def test_without_a_size_images_keep_their_own(reader, make_batch):
    pipe = reader(encode(gradient(20, 30)), encode(gradient(30, 20)))
    batch = make_batch(pipe.batch(2).decode(flip=0.999999)).batch
    assert isinstance(batch["image"], list)
    assert [tuple(i.shape) for i in batch["image"]] == [(3, 20, 30), (3, 30, 20)]
    assert batch["target_size"].tolist() == batch["original_size"].tolist() == [[20, 30], [30, 20]]
    assert batch["crop_top_left"].tolist() == [[0, 0], [0, 0]]
    expected = np.asarray(gradient(20, 30)).transpose(2, 0, 1)[:, :, ::-1]
    assert (batch["image"][0].numpy() == expected).all()
    alike = reader(encode(gradient(20, 30)), encode(gradient(20, 30)))
    assert make_batch(alike.batch(2).decode()).batch["image"].shape == (2, 3, 20, 30)


@pytest.mark.parametrize("size", [None, (30, 30)])
def test_masks_go_with_their_images(size, reader, make_batch):
    pipe = reader(encode(gradient(60, 90, alpha=True)), encode(gradient(60, 90)))
    plain, mirrored = (
        make_batch(pipe.batch(2).decode(size, alpha="mask", flip=p)).batch for p in (0, 1)
    )
    target = size or (60, 90)
    assert plain["mask"].shape == (2, 1, *target)
    assert plain["mask"].dtype == torch.uint8
    assert (plain["mask"][1] == 255).all()
    # Opaque on the left: alpha is 255 - x * 255 / 89.
    columns = plain["mask"][0, 0].double().mean(0)
    places = (np.arange(target[1]) + 0.5) * (60 / 30 if size else 1) + (15 if size else 0) - 0.5
    assert abs(columns.numpy() - (255 - places * 255 / 89)).max() < 3
    assert torch.equal(plain["mask"].flip(3), mirrored["mask"])
    matted = make_batch(pipe.batch(2).decode(size, matte=(0, 0, 255))).batch
    assert "mask" not in matted
    # Blue is 77 where opaque, and the matte's 255 where transparent.
    assert matted["image"][0, 2, :, 1].double().mean() < (85 if not size else 125)
    assert matted["image"][0, 2, :, -2].double().mean() > (245 if not size else 200)


def test_orientation_counts_in_the_geometry(reader, make_batch):
    turned = gradient(60, 90)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    turned.rotate(90, expand=True).save(file, "PNG", exif=exif)
    batch = make_batch(reader(file.getvalue()).batch(1).decode()).batch
    assert batch["original_size"].tolist() == [[60, 90]]
    assert (batch["image"][0].numpy() == np.asarray(turned).transpose(2, 0, 1)).all()


def test_other_fields_are_decoded_by_extension(make_tar, make_batch):
    array = io.BytesIO()
    np.save(array, np.arange(3, dtype=np.float32))
    fields = {
        "png": encode(gradient(8, 8)), "txt": b"a dog", "json": b'{"a": 1}', "cls": b"3",
        "emb.npy": array.getvalue(), "bin": b"\0\1", "other.txt": b"x",
    }  # fmt: skip
    path = make_tar([("a", fields), ("b", {**fields, "cls": b"4"})])
    batch = make_batch(ShardLister(path, shuffle=False).read_tar().batch(2).decode(8)).batch
    assert batch["caption"] == ["a dog"] * 2
    assert batch["json"] == [{"a": 1}] * 2
    assert batch["cls"].tolist() == [3, 4]
    assert batch["emb.npy"].tolist() == [[0, 1, 2]] * 2
    assert batch["bin"] == [b"\0\1"] * 2
    assert batch["other.txt"] == ["x", "x"]
    assert "txt" not in batch
    assert "png" not in batch


def test_the_image_and_the_caption_may_be_named(make_tar, make_batch):
    small, large = encode(gradient(10, 10)), encode(gradient(20, 20))
    fields = {"png": small, "seg.png": large, "txt": b"text", "json": b'{"caption": "from json"}'}
    reader = ShardLister(make_tar([("a", fields)])).read_tar()
    plain = make_batch(reader.batch(1).decode()).batch
    assert plain["image"].shape == (1, 3, 10, 10)
    assert plain["seg.png"] == [large]
    assert plain["caption"] == ["text"]
    named = make_batch(reader.batch(1).decode(image="seg.png", caption="json.caption")).batch
    assert named["image"].shape == (1, 3, 20, 20)
    assert named["png"] == [small]
    assert named["caption"] == ["from json"]
    assert named["txt"] == ["text"]
    assert named["json"] == [{"caption": "from json"}]


def test_captions_are_picked_by_the_draws(make_tar, make_batch):
    samples = [(f"{i:03d}", {"txt": b"one\ntwo\nthree"}) for i in range(200)]
    pipe = ShardLister(make_tar(samples)).read_tar().batch(200)
    found = make_batch(pipe.decode(caption_lines=True, caption_pick="random")).batch["caption"]
    assert min(found.count(c) for c in ("one", "two", "three")) > 40
    weighted = make_batch(pipe.decode(caption_lines=True, caption_pick=[0, 3, 1])).batch["caption"]
    assert weighted.count("one") == 0
    assert 120 < weighted.count("two") < 180
    assert (
        make_batch(pipe.decode(caption="no", caption_default="-")).batch["caption"] == ["-"] * 200
    )
    without = ShardLister(make_tar([("a", {"png": encode(gradient(8, 8))})], "b.tar")).read_tar()
    assert "caption" not in make_batch(without.batch(1).decode()).batch
    assert make_batch(without.batch(1).decode(caption_default="")).batch["caption"] == [""]


@pytest.mark.parametrize(
    ("fields", "arguments", "message"),
    [
        ({"png": b"junk"}, {}, "field 'png': not an image"),
        ({"png": encode(gradient())[:300]}, {}, "field 'png': cannot be decoded: "),
        ({"txt": b"gr\xfcn"}, {}, "field 'txt': text is not UTF-8: byte 0xfc at offset 2"),
        ({"jpg.txt": b"\xff"}, {}, "field 'jpg.txt' is no txt: text is not UTF-8"),
        ({"json": b"{"}, {}, "field 'json' is no json"),
        ({"txt": b"x"}, {"image": "jpg"}, "has no field 'jpg'; its fields are: txt"),
        ({"txt": b"x"}, {"caption": "text"}, "has no caption 'text'; its fields are: txt"),
        (
            {"png": encode(gradient())},
            {"max_pixels": 1000},
            "field 'png': the image has 150 x 210 pixels, more than the limit of 1000",
        ),
    ],
)
def test_errors_name_shard_key_field_and_cause(fields, arguments, message, make_tar, make_batch):
    pipe = ShardLister(make_tar([("the_key", fields)])).read_tar().batch(1).decode(8, **arguments)
    with pytest.raises(DataError, match=rf"^sample 'the_key' of [^ ]*00000.tar: {message}"):
        make_batch(pipe)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": "middle"}, "'center', 'random' or 'resized', got 'middle'"),
        ({"flip": 1.5}, "from 0 to 1, got 1.5"),
        ({"scale": (0, 1)}, "growing shares"),
        ({"scale": (0.5, 0.4)}, "growing shares"),
        ({"ratio": (2, 1)}, "growing positive"),
        ({"size": 0}, r"\(height, width\) in pixels, at least 1"),
        ({"size": (8,)}, r"\(height, width\) in pixels"),
        ({"size": (8, 0)}, r"\(height, width\) in pixels"),
        ({"size": (8.5, 8)}, r"\(height, width\) in pixels"),
        ({"size": (8, 8, 8)}, r"\(height, width\) in pixels"),
        ({"caption_pick": "last"}, "'first', 'random' or a list of weights"),
        ({"matte": (1, 2, 256)}, "matte"),
        ({"alpha": "keep"}, "alpha"),
        ({"max_pixels": 0}, "max_pixels"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message, fake):
    with pytest.raises(ValueError, match=message):
        Decoder(fake([1]), **arguments)
