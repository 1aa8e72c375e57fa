import pickle
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.pipes.splits import SampleSplit, split_range, split_rows, split_shards

SPLITS = {"train": 0.75, "val": 0.15, "test": 0.1}
URLS = [f"s3://b/{i:05d}.tar" for i in range(100)]


def test_counts_are_exact_and_every_shard_is_in_one_split():
    parts = {name: split_shards(URLS, SPLITS, name, seed=3) for name in SPLITS}
    assert {name: len(part) for name, part in parts.items()} == {"train": 75, "val": 15, "test": 10}
    assert sorted(url for part in parts.values() for url in part) == URLS
    assert all(part == sorted(part) for part in parts.values())  # in the order of urls


@given(st.integers(3, 60), st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(0, 9))
def test_largest_remainder(shards, weights, seed):
    splits = {f"s{i}": weight / sum(weights) for i, weight in enumerate(weights)}
    urls = URLS[:shards]
    if min(shards * fraction for fraction in splits.values()) < 1:
        return  # such a split may get no shard
    counts = [len(split_shards(urls, splits, name, seed)) for name in splits]
    assert sum(counts) == shards
    assert all(abs(n - shards * f) < 1 for n, f in zip(counts, splits.values(), strict=True))


def test_of_equal_remainders_the_first_split_gets_the_shard():
    assert len(split_shards(URLS[:5], {"a": 0.5, "b": 0.5}, "a", 0)) == 3
    # 3.5 and 1.5: the fractions are taken as they were typed (0.7 is less in binary, 0.3 nearer).
    assert len(split_shards(URLS[:5], {"a": 0.7, "b": 0.3}, "a", 0)) == 4


def test_neither_place_nor_order_counts():
    moved = [url.replace("s3://b", "/data/x") for url in URLS]
    random.Random(0).shuffle(moved)
    expected = {url.rpartition("/")[2] for url in split_shards(URLS, SPLITS, "val", seed=7)}
    found = split_shards(moved, SPLITS, "val", seed=7)
    assert {url.rpartition("/")[2] for url in found} == expected
    assert found == [url for url in moved if url in found]


def test_equal_base_names_do_not_depend_on_order_either():
    urls = [f"s3://b/part{i}/00000.tar" for i in range(20)]
    expected = split_shards(urls, SPLITS, "val", seed=1)
    assert split_shards(urls[::-1], SPLITS, "val", seed=1) == expected[::-1]
    moved = [url.replace("s3://b", "/mnt") for url in urls]
    assert [url.replace("s3://b", "/mnt") for url in expected] == split_shards(
        moved, SPLITS, "val", seed=1
    )


def test_the_seed_counts_and_a_result_never_changes():
    assert split_shards(URLS, SPLITS, "test", 0) != split_shards(URLS, SPLITS, "test", 1)
    names = [int(url[-9:-4]) for url in split_shards(URLS, SPLITS, "test", 0)]
    assert names == [15, 18, 20, 28, 46, 52, 53, 70, 83, 90]
    held = [i for i in range(40) if f"{i:09d}" in SampleSplit(SPLITS, "test", 0)]
    assert held == [7, 26, 39]


@pytest.mark.parametrize("make", [lambda *a: split_shards(URLS, *a), SampleSplit])
@pytest.mark.parametrize(
    ("splits", "split", "message"),
    [
        (SPLITS, "dev", r"no split 'dev'; there are 'train', 'val', 'test'"),
        ({"a": 0.7, "b": 0.2}, "a", "must sum to 1, got 0.9"),
        ({"a": 1.5, "b": -0.5}, "a", "'b' must be at least 0, got -0.5"),
        ({"a": float("nan"), "b": 1}, "a", "'a' must be at least 0, got nan"),
        ({}, "a", "must sum to 1"),
        ({"a": 1, "b": 0}, "b", "'b' has the fraction 0"),
    ],
)
def test_refuses(make, splits, split, message):
    with pytest.raises(ValueError, match=message):
        make(splits, split, 0)


def test_sums_are_not_compared_exactly():
    tenths = {str(i): 0.1 for i in range(10)}
    assert sum(tenths.values()) != 1
    assert len(split_shards(URLS, tenths, "3", 0)) == 10
    assert "x" in SampleSplit({"a": 1}, "a", 0)


def test_a_split_without_a_shard_is_an_error_whichever_is_asked():
    with pytest.raises(ValueError, match=r"split 'test' gets none of the 4 shards.*split_by"):
        split_shards(URLS[:4], SPLITS, "train", 0)


keys = st.text(st.characters(codec="utf-8"), max_size=12)


@given(keys, st.integers(-(2**70), 2**70))
def test_each_key_is_in_exactly_one_split(key, seed):
    assert sum(key in SampleSplit(SPLITS, name, seed) for name in SPLITS) == 1
    assert (
        sum(key in SampleSplit({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, n, seed) for n in "abc") == 1
    )


def test_samples_come_near_their_fractions():
    names = list(SPLITS)
    parts = [SampleSplit(SPLITS, name, 5) for name in names]
    count = Counter(
        next(name for name, part in zip(names, parts, strict=True) if f"{i:09d}" in part)
        for i in range(20_000)
    )
    for name, fraction in SPLITS.items():
        deviation = (20_000 * fraction * (1 - fraction)) ** 0.5
        assert abs(count[name] - 20_000 * fraction) < 4 * deviation


def test_shares_lie_in_the_order_of_the_mapping():
    # "val" grows at the cost of "train": what was in "test", and in "val", stays there.
    wider = {"train": 0.5, "val": 0.4, "test": 0.1}
    for i in range(500):
        for name in ("val", "test"):
            assert (str(i) not in SampleSplit(SPLITS, name, 0)) or str(i) in SampleSplit(
                wider, name, 0
            )


def test_a_sample_split_is_a_plain_value():
    part = SampleSplit(SPLITS, "val", 2)
    again = pickle.loads(pickle.dumps(part))
    assert again == part
    assert hash(again) == hash(part)
    assert all((str(i) in part) == (str(i) in again) for i in range(100))
    assert "\udcff" in SampleSplit({"a": 1}, "a", 0)  # of a name that is not UTF-8


@pytest.mark.parametrize(
    "splits",
    [
        {"train": 0.75, "val": 0.15, "test": 0.1},
        {"train": 0.8, "val": 0.2},
        {"train": 0.7, "val": 0.2, "test": 0.1},
        {"train": 1 / 3, "val": 1 / 3, "test": 1 / 3},
        {"train": 0.9, "val": 0.1, "test": 0.0},
    ],
)
@pytest.mark.parametrize("rows", [10, 97, 100, 10_007])
def test_ranges_of_rows_lie_one_behind_the_other(splits: dict[str, float], rows: int) -> None:
    ranges = [split_range(rows, splits, name) for name, share in splits.items() if share]
    assert [start for start, _ in ranges] == [0, *(end for _, end in ranges[:-1])]
    assert all(start < end for start, end in ranges)
    assert ranges[-1][1] == rows


def test_ranges_of_rows_are_those_of_the_fractions_as_typed() -> None:
    # int(0.29 * 100) is 28, and 0.7 + 0.2 + 0.1 is not 1.
    assert split_range(100, {"a": 0.29, "b": 0.71}, "a") == (0, 29)
    assert split_range(10, {"a": 0.7, "b": 0.2, "c": 0.1}, "b") == (7, 9)
    assert split_range(7, {"a": 0.8, "b": 0.2}, "b") == (5, 7)
    assert split_range(7, {"a": 0.8, "b": 0.2, "c": 0}, "b") == (5, 7)


def test_ranges_without_a_row_are_refused() -> None:
    with pytest.raises(ValueError, match=r"split 'b' \(0.25\) gets none of the 3 rows"):
        split_range(3, {"a": 0.5, "b": 0.25, "c": 0.25}, "b")
    with pytest.raises(ValueError, match="split 'b' has the fraction 0"):
        split_range(3, {"a": 1, "b": 0}, "b")
    with pytest.raises(ValueError, match="must sum to 1, got 1.2"):
        split_range(10, {"a": 0.8, "b": 0.4}, "a")


def test_rows_are_dealt_exactly():
    keys = [f"{i}.jpg" for i in range(1000)]
    parts = {name: split_rows(keys, SPLITS, name, seed=3).tolist() for name in SPLITS}
    assert {n: len(part) for n, part in parts.items()} == {"train": 750, "val": 150, "test": 100}
    assert sorted(row for part in parts.values() for row in part) == list(range(1000))
    assert all(part == sorted(part) for part in parts.values())
    assert parts["val"] != list(range(750, 900))
    assert parts["val"] != split_rows(keys, SPLITS, "val", seed=4).tolist()
    other = split_rows(keys[::-1], SPLITS, "val", seed=3)
    assert sorted(999 - other) == parts["val"]


@given(st.lists(st.integers(1, 5), min_size=10, max_size=60), st.integers(0, 9))
def test_rows_of_one_image_are_never_in_two_splits(images, seed):
    keys = [f"{i}.jpg" for i, count in enumerate(images) for _ in range(count)]
    random.Random(seed).shuffle(keys)
    splits = {"a": 0.6, "b": 0.4}
    parts = [split_rows(keys, splits, name, seed).tolist() for name in splits]
    assert sorted(parts[0] + parts[1]) == list(range(len(keys)))
    assert not {keys[i] for i in parts[0]} & {keys[i] for i in parts[1]}
    assert -1 < len(parts[0]) - 0.6 * len(keys) < max(images)


def test_a_split_without_rows_is_refused():
    with pytest.raises(ValueError, match="split 'b' gets none of the 2 rows"):
        split_rows(["x", "y"], {"a": 0.9, "b": 0.1}, "a", 0)
    with pytest.raises(ValueError, match="split 'b' gets none of the 4 rows"):
        split_rows(["x"] * 4, {"a": 0.5, "b": 0.5}, "a", 0)
    assert len(split_rows(["x", "y"], {"a": 1, "b": 0}, "a", 0)) == 2
