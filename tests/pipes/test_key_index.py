"""A key names its row, or an error says why not; never another's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.pipes import DataError
from penstock.pipes.key_index import KeyIndex


@given(
    shard=st.integers(0, 99_999),
    index=st.integers(0, 9_999),
    shard_width=st.integers(5, 9),
    index_width=st.integers(4, 8),
)
def test_all_three_ways_name_the_row(shard, index, shard_width, index_width):
    key = f"{shard:0{shard_width}d}{index:0{index_width}d}"
    digits = f"{shard:0{shard_width}d}"
    for how in (
        KeyIndex(),
        KeyIndex(index_width=index_width),
        KeyIndex(shard_width=shard_width),
    ):
        assert how.row(key, digits) == index
    # The widths of the tar's name and of the key's shard may differ, where one is given.
    for digits in (str(shard), f"{shard:012d}"):
        assert KeyIndex(index_width=index_width).row(key, digits) == index
        assert KeyIndex(shard_width=shard_width).row(key, digits) == index


def test_the_readmes_examples():
    assert KeyIndex().row("00010509", "0001") == 509
    assert KeyIndex(index_width=4).row("00010509", "0001") == 509
    assert KeyIndex(shard_width=4).row("0003039", "3") == 39
    assert KeyIndex(shard_width=4).row("some/folder/0003039", "0003") == 39
    assert KeyIndex(index_width=4).row("0012", "3") == 12
    assert KeyIndex(index_width=8).row("12", "3") == 12


@pytest.mark.parametrize(
    ("how", "key", "fault"),
    [
        (
            KeyIndex(),
            "00040001",
            "does not begin with the digits of its tar, '0003': say with inde",
        ),
        (KeyIndex(), "0003", "has no index: '' is no number"),
        (KeyIndex(), "0003a001", "'a001' is no number"),
        (
            KeyIndex(index_width=4),
            "00040001",
            "is of shard 4 and stands in tar 3, with index_width",
        ),
        (KeyIndex(index_width=3), "00030001", "is of shard 30 and stands in tar 3"),
        (KeyIndex(index_width=4), "img_7", "'mg_7' is no number, with index_width=4"),
        (KeyIndex(index_width=4), "0003१२३४", "is no number"),
        (KeyIndex(index_width=4), "00031_00", "'1_00' is no number"),
        (
            KeyIndex(shard_width=4),
            "00040001",
            "is of shard 4 and stands in tar 3, with the first 4",
        ),
        (KeyIndex(shard_width=3), "00030001", "is of shard 0 and stands in tar 3"),
    ],
)
def test_keys_that_name_no_row_of_their_tar(how, key, fault):
    with pytest.raises(DataError, match=f"^key {key!r} .*{fault}"):
        how.row(key, "0003")


@given(
    indices=st.lists(st.integers(0, 99), unique=True, min_size=2, max_size=8),
    wrong=st.integers(0, 7),
)
def test_keys_of_other_tars_have_no_row(indices, wrong):
    keys = [f"0003{i:04d}" for i in indices]
    wrong %= len(keys)
    keys[wrong] = "0004" + keys[wrong][4:]
    rows = KeyIndex(index_width=4).rows(keys, "0003").tolist()
    assert rows == [-1 if i == wrong else index for i, index in enumerate(indices)]
    with pytest.raises(DataError, match="index_width"):
        KeyIndex().rows(keys, "0003")


def test_two_keys_of_one_row_are_refused():
    with pytest.raises(DataError, match=r"^keys 'a_0001' and 'b_0001' both name row 1: the index"):
        KeyIndex(index_width=4).rows(["a_0001", "a_0002", "b_0001"], "0003")
    with pytest.raises(DataError, match=r"^keys '00031' and '000301' both name row 1"):
        KeyIndex(shard_width=4).rows(["00031", "000301"], "0003")
    assert KeyIndex(index_width=4).rows(["a_0001", "a_0001"], "0003").tolist() == [1, 1]


def test_keys_that_begin_with_the_tars_digits_by_chance_are_refused():
    with pytest.raises(DataError, match="'10' and '1000' differ in length, so it is not certain"):
        KeyIndex().rows(["10", "11", "1000"], "1")
    assert KeyIndex(index_width=9).rows(["0", "11", "1000"], "1").tolist() == [0, 11, 1000]


def test_rows_beyond_all_files_stay_beyond():
    key = "3" + "9" * 30
    assert KeyIndex().rows([key], "3")[0] > 10**18
    assert KeyIndex().row(key, "3") == int("9" * 30)


def test_widths_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="give one of them"):
        KeyIndex(4, 4)
    with pytest.raises(ValueError, match="index_width is a number of characters, got 0"):
        KeyIndex(index_width=0)
    with pytest.raises(ValueError, match="shard_width is a number of characters, got -1"):
        KeyIndex(shard_width=-1)
    assert KeyIndex(shard_width=0).row("0012", "3") == 12
