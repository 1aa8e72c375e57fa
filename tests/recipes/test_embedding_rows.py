import pytest

from penstock.pipes import DataError
from penstock.pipes.embedding_files import tar_digits
from penstock.recipes.embedding_rows import index_rows, numbered_shards


@pytest.mark.parametrize(
    ("url", "digits"),
    [
        ("data/00012.tar", "00012"),
        ("s3://b2/laion-0007.tar.gz", "0007"),
        ("http://h/3.tar?sign=99", "3"),
        ("/a/part2-00012", "00012"),
    ],
)
def test_the_digits_of_shards(url, digits):
    assert tar_digits(url) == digits


def test_shards_without_a_number_of_their_own():
    with pytest.raises(ValueError, match=r"data/train\.tar has no number at the end of its name"):
        tar_digits("data/train.tar")
    assert numbered_shards(["b/001.tar", "a/0.tar"]) == {1: "b/001.tar", 0: "a/0.tar"}
    with pytest.raises(ValueError, match=r"b/001\.tar and a/1\.tar are both shard 1"):
        numbered_shards(["b/001.tar", "a/1.tar"])


@pytest.mark.parametrize(
    ("url", "keys", "width", "rows"),
    [
        ("00012.tar", ["000120034", "000120000"], None, [34, 0]),
        ("00012.tar", ["a/b/000120034"], None, [34]),
        ("1.tar", ["10", "11"], None, [0, 1]),
        ("x-0003.tar", ["00030509"], None, [509]),
        ("x-3.tar", ["00030509"], 4, [509]),
        ("3.tar", ["cat0309", "dog07"], 2, [9, 7]),
        ("3.tar", ["0509", "0001"], 4, [509, 1]),
        ("3.tar", [], None, []),
    ],
)
def test_the_rows_of_keys(url, keys, width, rows):
    assert index_rows(url, keys, width).tolist() == rows


@pytest.mark.parametrize(
    ("url", "keys", "width", "words"),
    [
        (
            "00012.tar",
            ["cat"],
            None,
            "key 'cat' does not begin with the digits of its tar, '00012'",
        ),
        ("00012.tar", ["000130034"], None, "key '000130034'"),
        ("00012.tar", ["00012"], None, "key '00012'"),
        ("1.tar", ["10", "100"], None, "keys '10' and '100' differ in length"),
        ("00012.tar", ["00012\u0663"], None, "has no index: '\u0663' is no number"),
        ("2.tar", ["000010034"], 4, "key '000010034' is of shard 1 and stands in tar 2"),
        ("2.tar", ["34"], 4, "key '34'"),
        ("2.tar", ["2123456789"], 9, "below 10,000,000"),
        (
            "2.tar",
            ["a21", "b21"],
            1,
            "keys 'a21' and 'b21' both name row 1: the index is wider",
        ),
        ("2.tar", ["a/20", "b/21", "b/20"], None, "keys 'a/20' and 'b/20' both name row 0"),
        ("2.tar", ["20", "20"], None, "key '20' is there twice, and names row 0"),
    ],
)
def test_keys_without_a_row_are_refused(url, keys, width, words):
    with pytest.raises(DataError) as error:
        index_rows(url, keys, width)
    assert words in str(error.value)
    assert f"(in {url}; say with --index_width" in str(error.value)
