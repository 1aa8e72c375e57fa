"""A cache as a data set: entries in shards, with their sizes, decoded without the originals."""

import os
from pathlib import Path

import pytest
import torch

from penstock.pipes import DataError, EntryStore, ShardLister, entry_field
from penstock.pipes.bucket import AspectRatioBucketer
from penstock.pipes.entry_field import entry_size, pixel_metadata
from penstock.pipes.sample import Extent
from penstock.pipes.slot import BatchMemory
from penstock.transforms.entry_bytes import entry_bytes


def name(i: int) -> str:
    return f"{i * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128):032x}"


def latents(i: int, height: int, width: int) -> dict[str, torch.Tensor]:
    mean = torch.arange(2 * height * width).reshape(2, height, width).mul(i + 1).bfloat16()
    return {"mean": mean, "logvar": -mean.float()}


@pytest.fixture
def cache(tmp_path):
    """Return a function that fills a cache with entries of given sizes, and gives its shards."""

    def fill(sizes, **more):
        with EntryStore(tmp_path / "cache", shard_size=20_000) as store:
            for i, (height, width) in enumerate(sizes):
                about = {"caption": [f"c{i}", "other"], "field": "latents"}
                about |= {"target_size": [height, width], **more}
                store.write(name(i), latents(i, height // 8, width // 8), about, str(i))
        return ShardLister(str(tmp_path / "cache" / "*.tar"), seed=1).read_tar()

    return fill


def check(batch, sizes) -> list[int]:
    """Return the entries of a batch, each of which must be its own."""
    numbers = [int(caption[1:]) for caption in batch["caption"]]
    for row, i in enumerate(numbers):
        want = latents(i, *(side // 8 for side in sizes[i]))
        for key, tensor in want.items():
            assert torch.equal(batch["latents"][key][row], tensor)
            assert batch["latents"][key].dtype == tensor.dtype
        assert batch["target_size"][row].tolist() == list(sizes[i])
    assert "image" not in batch
    assert "safetensors" not in batch
    return numbers


@pytest.mark.parametrize("workers", [0, 2])
def test_it_trains_without_the_originals(cache, workers):
    sizes = [[(64, 64), (48, 80), (80, 48)][i % 3] for i in range(24)]
    pipe = cache(sizes).shuffle(100).bucket_by_aspect_ratio(64, 4, step=16)
    pipe = pipe.lanes(1, repeat=False).decode(caption="json.caption")
    found = [i for batch in pipe.loader(num_workers=workers) for i in check(batch, sizes)]
    assert sorted(found) == list(range(24))


def test_entries_are_read_straight_into_the_batch(cache, make_batch, monkeypatch):
    made = []
    empty = BatchMemory._empty
    monkeypatch.setattr(BatchMemory, "_empty", lambda *args: made.append(empty(*args)) or made[-1])
    sizes = [(64, 64)] * 4
    batch = make_batch(cache(sizes).batch(4).decode(64, caption="json.caption")).batch
    assert sorted(check(batch, sizes)) == [0, 1, 2, 3]
    found = {tensor.data_ptr() for tensor in batch["latents"].values()}
    assert found == {tensor.data_ptr() for tensor in made}
    assert len(made) == 2  # and no memory for images


def test_every_bucket_gives_its_own_size(cache):
    """What a bucketer has sorted once, it sorts the same by the sizes in the entries."""
    for arguments in ({"step": 64}, {"step": 16}, {"step": 32, "max_ratio": 4.0, "upscale": False}):
        for resolution in (512, [256, 512, 1024]):
            buckets = AspectRatioBucketer(
                ShardLister("x.tar").read_tar(), resolution, 1, **arguments
            ).buckets
            for i, size in enumerate(buckets.sizes):
                assert buckets.assign(*size) == i


def test_other_arguments_than_it_was_filled_with_are_bad_data(cache, make_batch):
    reader = cache([(64, 64)] * 4)
    with pytest.raises(
        DataError, match=r"'safetensors': its entry is of 64 x 64 pixels, and .* 32 x 32"
    ):
        make_batch(reader.bucket_by_aspect_ratio(32, 4, step=16).decode())
    with pytest.raises(DataError, match="of 64 x 64 pixels, and its batch of 48 x 80"):
        make_batch(reader.batch(4).decode((48, 80)))
    batch = make_batch(reader.batch(4).decode(caption="json.caption")).batch
    assert sorted(check(batch, [(64, 64)] * 4)) == [0, 1, 2, 3]


def test_entries_of_many_shapes_stay_apart(cache, make_batch):
    sizes = [(64, 64), (48, 80), (64, 64)]
    batch = make_batch(cache(sizes).batch(3).decode(caption="json.caption")).batch
    assert isinstance(batch["latents"], list)
    for found, caption in zip(batch["latents"], batch["caption"], strict=True):
        i = int(caption[1:])
        assert torch.equal(found["mean"], latents(i, *(s // 8 for s in sizes[i]))["mean"])


def test_what_is_said_of_the_pixels_comes_with_them(cache, make_batch):
    more = {"original_size": (100, 90), "crop_top_left": "0x3", "flipped": True}
    batch = make_batch(cache([(64, 64)] * 2, **more).batch(2).decode()).batch
    assert batch["original_size"].tolist() == [[100, 90]] * 2
    assert batch["crop_top_left"].tolist() == [[0, 3]] * 2
    assert batch["flipped"].tolist() == [True, True]
    assert batch["original_size"].dtype == torch.int64


def test_the_preview_has_them(cache):
    found = cache([(64, 64)] * 2).batch(2).decode(caption="json.caption").preview(2)
    assert [set(s["latents"]) for s in found] == [{"mean", "logvar"}] * 2
    assert found[0]["latents"]["mean"].shape == (2, 8, 8)


def test_metadata_that_is_no_name_or_size_is_left_out():
    good = {"field": "latents", "target_size": "64x48", "crop_top_left": [0, 1], "flipped": False}
    assert pixel_metadata(good) == good | {"crop_top_left": "0x1", "flipped": "false"}
    bad = [{"target_size": size} for size in ("64", [1, 2, 3], [-1, 2], [1.5, 2], {"a": 1})]
    for about in [*bad, {"field": "__key__"}, {"field": 3}, {"flipped": "yes"}, {}]:
        assert pixel_metadata(about) == {}


def entry(metadata, **tensors) -> bytes:
    return entry_bytes(tensors or {"mean": torch.ones(2, 3)}, metadata)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"field": "__url__"}, "would be called '__url__'"),
        ({"field": "../x"}, "would be called"),
        ({"field": "json"}, "would be called 'json', as another field is"),
        ({"target_size": "64"}, "target_size is '64'; expected such as"),
        ({"target_size": "64x" + "9" * 30}, "target_size is"),
    ],
)
def test_metadata_of_strangers_is_checked(make_tar, make_batch, metadata, words):
    path = make_tar([("a", {"json": b"{}", "safetensors": entry(metadata)})])
    with pytest.raises(DataError, match=f"sample 'a' of .*field 'safetensors': .*{words}"):
        make_batch(ShardLister(path).read_tar().batch(1).decode())


def test_other_tensors_beside_an_image_keep_their_field(make_tar, make_batch, make_jpeg):
    fields = {"jpg": make_jpeg(40, 60, 0), "clip.safetensors": entry({}, a=torch.ones(3).half())}
    reader = ShardLister(make_tar([("a", fields), ("b", fields)])).read_tar()
    batch = make_batch(reader.bucket_by_aspect_ratio(32, 2, step=16).decode()).batch
    assert batch["clip.safetensors"]["a"].dtype == torch.float16
    assert batch["clip.safetensors"]["a"].shape == (2, 3)
    assert batch["image"].shape[0] == 2
    assert batch["original_size"].tolist() == [[40, 60]] * 2  # the image's own
    loaded = make_batch(reader.batch(2).load()).batch
    assert loaded["clip.safetensors"] == [fields["clip.safetensors"]] * 2


def test_joined_to_the_originals_the_image_gives_the_size(cache, make_tar, make_batch, make_jpeg):
    reader = cache([(64, 64)])
    key = next(iter(reader))["__key__"]
    shard = Path(reader.source.urls[0]).name
    image = ShardLister(make_tar([(key, {"jpg": make_jpeg(80, 80, 0)})], shard)).read_tar()
    both = image.join(reader.select("safetensors"))
    batch = make_batch(both.bucket_by_aspect_ratio(64, 1, step=16).decode()).batch
    assert batch["image"].shape == (1, 3, 64, 64)
    assert batch["latents"]["mean"].shape == (1, 2, 8, 8)
    with pytest.raises(DataError, match="of 64 x 64 pixels, and its batch of 32 x 32"):
        make_batch(both.bucket_by_aspect_ratio(32, 1, step=16).decode())


def test_damage_is_a_bad_sample_that_may_be_skipped(cache, make_batch):
    reader = cache([(64, 64)] * 3)
    sample = next(iter(reader))
    path, offset, _ = sample["safetensors"]
    with open(path, "r+b") as file:
        file.seek(offset + 12)
        file.write(b"\xff\xff")
    pipe = reader.batch(3).decode(caption="json.caption")
    with pytest.raises(
        DataError, match=f"byte {offset} of .*it is no entry: its header is no JSON"
    ):
        make_batch(pipe)
    made = make_batch(pipe, on_error="skip")
    batch = made.batch
    assert len(batch["__filled__"]) == len(made.skipped) == 1
    assert len(set(check(batch, [(64, 64)] * 3))) == 2
    bucketed = reader.bucket_by_aspect_ratio(64, 3, step=16).decode()
    with pytest.raises(DataError, match="it is no entry"):
        make_batch(bucketed)


def test_an_entry_that_says_no_size_has_none(tmp_path, make_tar, make_batch):
    data = entry({"field": "t5"})
    path = tmp_path / "a"
    path.write_bytes(b"....." + data)
    fd = os.open(path, os.O_RDONLY)
    assert entry_size(Extent(str(path), 5, len(data)), fd) is None
    long = entry({"target_size": "48x64", "more": "x" * 3000})
    path.write_bytes(long)
    assert entry_size(Extent(str(path), 0, len(long)), fd) == (48, 64)
    with pytest.raises(DataError, match="byte 0 of .*no entry"):
        entry_size(Extent(str(path), 0, len(long) - 1), fd)
    os.close(fd)
    reader = ShardLister(make_tar([("a", {"safetensors": data})])).read_tar()
    with pytest.raises(DataError, match="has no image"):
        make_batch(reader.bucket_by_aspect_ratio(64, 1).decode())
    assert make_batch(reader.batch(1).decode()).batch["t5"]["mean"].shape == (1, 2, 3)


def test_a_shard_cut_under_the_run_is_named(cache, make_batch):
    reader = cache([(64, 64)] * 2)
    sample = next(iter(reader))
    path, offset, size = sample["safetensors"]
    value = Extent(path, offset, size)
    os.truncate(path, offset + size - 10)
    with pytest.raises(DataError, match=rf"ends at byte {offset + size - 10}, in the middle of an"):
        entry_field.read_field_entry("safetensors", value, _None(), None)


class _None:
    def row(self, *_):
        return None


def test_of_remote_shards(cache, s3, make_batch):
    sizes = [(64, 64)] * 4
    urls = cache(sizes).source.urls
    remote = [s3.put(f"{i}.tar", Path(url).read_bytes()) for i, url in enumerate(urls)]
    lister = ShardLister(remote, storage_options=s3.options)
    pipe = lister.read_tar().bucket_by_aspect_ratio(64, 4, step=16).lanes(1, by="shards")
    pipe = pipe.decode(caption="json.caption")
    assert sorted(check(make_batch(pipe).batch, sizes)) == [0, 1, 2, 3]
