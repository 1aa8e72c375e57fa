import io
import os
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.pipes.shard_index import ShardIndex, image_field

SAMPLES = [
    ("a/000", [("jpg", 512, 100), ("txt", 1536, 3)]),
    ("b", [("jpg", 2560, 7), ("txt", 3584, 0)]),
    ("é\udcff", [("seg.png", 1 << 40, 9), ("json", (1 << 40) + 1024, 1 << 35)]),
    ("", [("cls", 5, 1)]),
]

names = st.text(max_size=5)
number = st.integers(0, 2**62)
fields = st.lists(
    st.tuples(names, number, number), min_size=1, max_size=4, unique_by=lambda f: f[0]
)
tables = st.lists(st.tuples(names, fields), max_size=6)


@pytest.fixture
def index():
    return ShardIndex.build(SAMPLES)


def unpacked(index):
    return [(index.key(i), index.members(i)) for i in range(len(index))]


def test_gives_back_what_it_was_built_of(index):
    assert len(index) == 4
    assert unpacked(index) == SAMPLES
    assert index.keys() == [key for key, _ in SAMPLES]
    assert all(type(n) is int for i in range(4) for member in index.members(i) for n in member[1:])
    assert [index.image_extent(i) for i in range(4)] == [
        ("jpg", 512, 100),
        ("jpg", 2560, 7),
        ("seg.png", 1 << 40, 9),
        None,
    ]
    with pytest.raises(IndexError):
        index.members(4)


@given(tables)
def test_any_table_survives_a_file_and_a_pickle(tmp_path_factory, samples):
    index = ShardIndex.build(samples)
    path = str(tmp_path_factory.getbasetemp() / "any.npz")
    index.save(path, source_size=1 << 50, source_mtime_ns=-5)
    loaded, *version = ShardIndex.load(path)
    assert version == [1 << 50, -5]
    for again in (index, loaded, pickle.loads(pickle.dumps(index))):
        assert unpacked(again) == samples
        assert again.fingerprint == index.fingerprint
        assert again.image_sizes is None


def test_image_sizes_and_errors_survive_a_file_and_a_pickle(index, tmp_path):
    sizes = np.array([[480, 640], [-1, -1], [70000, 3], [0, 0]])
    sized = index.with_image_sizes(sizes, {1: "not an image: é"})
    sizes[0] = 0  # the index has its own
    assert index.image_sizes is None
    sized.save(str(tmp_path / "i.npz"), source_size=1, source_mtime_ns=2)
    for again in (
        sized,
        ShardIndex.load(str(tmp_path / "i.npz"))[0],
        pickle.loads(pickle.dumps(sized)),
    ):
        assert again.image_sizes.dtype == np.int32
        assert again.image_sizes.tolist() == [[480, 640], [-1, -1], [70000, 3], [0, 0]]
        assert [again.image_error(i) for i in range(4)] == [None, "not an image: é", None, None]
        assert again.fingerprint == index.fingerprint
        with pytest.raises(ValueError, match="read-only"):
            again.image_sizes[0] = 1
    with pytest.raises(ValueError, match=r"must have the shape \(4, 2\), got \(2, 4\)"):
        index.with_image_sizes(sizes.T, {})


def test_the_fingerprint_is_of_keys_fields_and_sizes(index):
    assert index.fingerprint == 0x93FEA3940C77E485  # checkpoints have it: it never changes

    def changed(i, key=None, field=None, offset=None, size=None):
        samples = [(key_, list(members)) for key_, members in SAMPLES]
        (name, at, length), *rest = samples[i][1]
        member = (field or name, at if offset is None else offset, length if size is None else size)
        samples[i] = (samples[i][0] if key is None else key, [member, *rest])
        return ShardIndex.build(samples).fingerprint

    assert changed(0) == changed(0, offset=1) == changed(2, offset=7) == index.fingerprint
    assert index.fingerprint != changed(0, key="a/001") != changed(0, field="jpeg")
    assert index.fingerprint not in (changed(1, size=8), changed(1, key="c"), changed(3, field="x"))
    assert ShardIndex.build(SAMPLES[:3]).fingerprint != index.fingerprint
    # Where one key ends and the next begins counts too.
    pair = [ShardIndex.build([(a, []), (b, [])]).fingerprint for a, b in (("ab", "c"), ("a", "bc"))]
    assert pair[0] != pair[1]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["txt", "PNG", "jpg"], "jpg"),
        (["jpg", "image", "png"], "image"),
        (["txt", "WebP"], "WebP"),
        (["seg.png", "depth.jpg"], "seg.png"),
        (["seg.png", "tiff"], "tiff"),
        (["txt", "a.b.JFIF"], "a.b.JFIF"),
        (["png.txt", "jpgx", "json"], None),
        ([], None),
    ],
)
def test_image_field(names, expected):
    assert image_field(names) == expected


def test_a_sample_of_three_fields_takes_less_than_60_bytes():
    def samples():
        at = 1 << 40  # beyond what 32 bits hold
        for i in range(5000):
            yield (
                f"{i:09d}",
                [("jpg", at, 50_000), ("txt", at + 51_200, 90), ("json", at + 52_224, 400)],
            )
            at += 53_248

    index = ShardIndex.build(samples()).with_image_sizes(np.ones((5000, 2)), {})
    assert len(pickle.dumps(index)) / 5000 < 60
    assert index.key(4999) == "000004999"
    assert index.members(4999)[2] == ("json", (1 << 40) + 4999 * 53_248 + 52_224, 400)


def test_saves_whole_or_not_at_all(index, tmp_path, monkeypatch):
    path = tmp_path / "i.npz"
    index.save(str(path), source_size=1, source_mtime_ns=2)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        index.save(str(path), source_size=3, source_mtime_ns=4)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["i.npz"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "i.npz"
    sized = ShardIndex.build(SAMPLES).with_image_sizes(np.zeros((4, 2)), {0: "why"})
    sized.save(str(path), source_size=1, source_mtime_ns=2)
    return path


@given(st.data())
def test_a_damaged_file_is_refused_by_name(saved, data):
    content = bytearray(saved.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[at:]
    else:
        content[at] ^= data.draw(st.integers(1, 255))
    path = saved.with_name("damaged.npz")
    path.write_bytes(content)
    try:
        loaded, *version = ShardIndex.load(str(path))
    except ValueError as err:
        assert str(path) in str(err)  # noqa: PT017
    else:  # a byte that says nothing, such as a date in zip's directory
        assert (unpacked(loaded), version) == (SAMPLES, [1, 2])


def save_arrays(path, **changed):
    """Write a file of an index with some of its arrays replaced."""
    arrays = {
        "penstock_index": np.array([1, 10, 20]),
        "keys": np.frombuffer(b"ab", np.uint8),
        "key_ends": np.array([1, 2]),
        "schemas": np.frombuffer(b'[["jpg"]]', np.uint8),
        "schema": np.array([0, 0]),
        "offsets": np.array([0, 5]),
        "sizes": np.array([5, 5]),
    }
    arrays.update(changed)
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})


def test_other_orders_of_bytes_are_read(tmp_path):
    save_arrays(tmp_path / "x.npz", offsets=np.array([0, 5], ">i4"))
    index, size, mtime_ns = ShardIndex.load(str(tmp_path / "x.npz"))
    assert unpacked(index) == [("a", [("jpg", 0, 5)]), ("b", [("jpg", 5, 5)])]
    assert (size, mtime_ns) == (10, 20)


@pytest.mark.parametrize(
    "changed",
    [
        {"penstock_index": np.array([2, 10, 20])},
        {"penstock_index": None},
        {"keys": np.frombuffer(b"abc", np.uint8)},
        {"key_ends": np.array([2, 1])},
        {"key_ends": np.array([2])},
        {"schema": np.array([0, 1])},
        {"schema": np.array([0, -1])},
        {"schema": np.array([[0, 0]])},
        {"schemas": np.frombuffer(b"[[1]]", np.uint8)},
        {"schemas": np.frombuffer(b"[[", np.uint8)},
        {"offsets": np.array([0])},
        {"offsets": np.array([0, -5])},
        {"sizes": np.array([5.0, 5.0])},
        {"sizes": np.array([{}, {}])},  # pickled
        {"image_sizes": np.zeros((3, 2), np.int32)},
    ],
)
def test_a_foreign_file_is_refused_by_name(tmp_path, changed):
    path = tmp_path / "x.npz"
    save_arrays(path, **changed)
    with pytest.raises(ValueError, match=r"x\.npz is no index of a shard"):
        ShardIndex.load(str(path))


def test_what_is_no_npz_is_refused_by_name(tmp_path):
    path = tmp_path / "x.npz"
    array = io.BytesIO()
    np.save(array, np.arange(3))
    for content in (b"", b"PK", b"hello", array.getvalue()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.npz is no index of a shard"):
            ShardIndex.load(str(path))
    np.savez_compressed(path, penstock_index=np.zeros(10**6))
    with pytest.raises(ValueError, match="it is compressed"):
        ShardIndex.load(str(path))
    with pytest.raises(FileNotFoundError):
        ShardIndex.load(str(tmp_path / "none.npz"))
