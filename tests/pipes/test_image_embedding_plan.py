"""Only what is wanted of a sample is read, and whatever its image's format."""

import pytest
from PIL import Image

from penstock.pipes import DataError, ShardLister
from penstock.pipes.image_embedding_plan import Preprocess, WantedFields


@pytest.fixture
def reader(make_tar, make_jpeg):
    samples = [
        ("a", {"jpg": make_jpeg(8, 8, 1), "txt": b"t", "json": b"{"}),
        ("b", {"png": b"P", "txt": b"t"}),
        ("c", {"txt": b"t"}),
    ]
    return ShardLister(make_tar(samples), shuffle=False).read_tar()


def test_wanted_fields(reader, open_lane):
    order, _ = open_lane(WantedFields(reader, ["txt"]))
    refs = [order.next().ref for _ in range(3)]
    found = [[k for k in order.resolve(ref) if not k.startswith("__")] for ref in refs[:2]]
    assert found == [["jpg", "txt"], ["png", "txt"]]
    with pytest.raises(
        DataError, match=r"^sample 'c' of .*: has no field 'jpg'; its fields are: t"
    ):
        order.resolve(refs[2])


def test_preprocessing(reader, make_batch):
    wanted = WantedFields(reader, []).batch(1).decode()
    image = make_batch(wanted).batch["image"]
    scaled = make_batch(wanted.map(Preprocess(None))).batch["image"]
    assert scaled.tolist() == (image.float() / 255).tolist()

    def check(picture):
        assert isinstance(picture, Image.Image)
        assert picture.size == (8, 8)
        return picture.getpixel((0, 7))

    assert make_batch(wanted.map(Preprocess(check))).batch["image"] == [
        tuple(image[0, :, 7, 0].tolist())
    ]
