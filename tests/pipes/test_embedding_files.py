"""A tar and a .npy file belong together by number, and by nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.pipes.embedding_files import list_embeddings, npy_number, pair, stem, tar_digits
from penstock.pipes.remote import Remote


@pytest.mark.parametrize(
    ("url", "digits"),
    [
        ("00012.tar", "00012"),
        ("s3://b/shard-00012.tar", "00012"),
        ("/a/part2-7.tar.gz", "7"),
        ("data.v2.0003.tar", "0003"),
        ("https://h/a/000012.tar?sig=1/2", "000012"),
        ("pipe:aws s3 cp s3://b/000123.tar -", "000123"),
        ("7.tgz", "7"),
    ],
)
def test_digits_of_tars(url, digits):
    assert tar_digits(url) == digits


@pytest.mark.parametrize("url", ["train.tar", "00012-train.tar", "a/12/x.tar"])
def test_tars_without_a_number(url):
    with pytest.raises(ValueError, match=f"{url} has no number at the end of its name"):
        tar_digits(url)
    assert stem("a/12/x.tar.zst") == "x"


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("img_emb_0001.npy", 1),
        ("text_emb_12.npy", 12),
        ("s3://b/c/0007.npy", 7),
        ("a_b_00.npy", 0),
        ("img_emb_x1.npy", None),
        ("img-emb-0001.npy", None),
        ("mean.npy", None),
        ("img_emb_.npy", None),
        ("img_emb_१.npy", None),
        ("img_emb_1.parquet", None),
        ("README", None),
    ],
)
def test_numbers_of_files(name, number):
    assert npy_number(name) == number


@given(
    numbers=st.sets(st.integers(0, 99_999), min_size=1, max_size=6),
    tar_width=st.integers(1, 9),
    npy_width=st.integers(1, 9),
)
def test_any_padding_pairs(numbers, tar_width, npy_width):
    files = {npy_number(f"img_emb_{n:0{npy_width}d}.npy"): str(n) for n in numbers}
    urls = {f"t/{n:0{tar_width}d}.tar": n for n in numbers}
    digits = pair(list(urls), files, "e/", True)
    assert {url: files[int(own)] for url, own in digits.items()} == {
        url: str(n) for url, n in urls.items()
    }


def test_a_folder_lists_its_numbered_files_and_passes_over_the_rest(tmp_path):
    for name in ("img_emb_1.npy", "img_emb_0010.npy", "mean.npy", ".img_emb_3.npy", "README.md"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "old_4.npy").mkdir()
    expected = {1: str(tmp_path / "img_emb_1.npy"), 10: str(tmp_path / "img_emb_0010.npy")}
    for url in (tmp_path, str(tmp_path) + "/", f"file://{tmp_path}"):
        assert list_embeddings(url, Remote()) == expected
    assert list_embeddings(str(tmp_path / "img_emb_*.npy"), Remote()) == expected
    assert list_embeddings([tmp_path / "img_emb_1.npy"], Remote()) == {1: expected[1]}


def test_two_files_of_one_number_are_refused(tmp_path):
    for name in ("img_emb_1.npy", "text_emb_01.npy"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"img_emb_1.npy and .*text_emb_01.npy have one number, 1"):
        list_embeddings(tmp_path, Remote())
    assert list(list_embeddings(str(tmp_path / "img_emb_*.npy"), Remote())) == [1]


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder of embeddings at .*/nowhere"):
        list_embeddings(tmp_path / "nowhere", Remote())
    np.save(tmp_path / "mean.npy", np.ones(2))
    with pytest.raises(ValueError, match="no .npy files with numbers"):
        list_embeddings(tmp_path, Remote())


def test_tars_that_lack_a_file_are_named():
    files = {1: "e/img_emb_1.npy", 3: "e/img_emb_3.npy"}
    urls = [f"{i}.tar" for i in range(10)]
    with pytest.raises(
        ValueError,
        match=r"^8 of 10 tars .* in e/ \(it has 2 files, img_emb_1.npy to"
        r" img_emb_3.npy\): 0.tar, 2.tar, 4.tar, 5.tar, 6.tar, …. .*skip",
    ):
        pair(urls, files, "e/", True)
    assert pair(urls, files, "e/", False)["7.tar"] == "7"
    assert pair(["1.tar", "3.tar"], files, "e/", True) == {"1.tar": "1", "3.tar": "3"}
    with pytest.raises(ValueError, match=r"^1 of 1 tars .*\(it has 2 files"):
        pair(["5.tar"], files, "e/", False)


def test_two_tars_of_one_number_are_refused():
    with pytest.raises(ValueError, match="a/1.tar and b/01.tar have one number"):
        pair(["a/1.tar", "b/01.tar"], {1: "e/1.npy"}, "e/", True)


def test_remote_folders(s3):
    for name in (
        "emb/img_emb_1.npy",
        "emb/img_emb_02.npy",
        "emb/note.txt",
        "emb/sub/img_emb_3.npy",
    ):
        s3.put(name, b"x")
    expected = {1: s3.url("emb/img_emb_1.npy"), 2: s3.url("emb/img_emb_02.npy")}
    remote = Remote(s3.options)
    for url in (s3.url("emb/"), s3.url("emb"), s3.url("emb/img_emb_*.npy")):
        assert list_embeddings(url, remote) == expected
    s3.put("emb/img_emb_4.npy", b"x")  # not from a cache
    assert 4 in list_embeddings(s3.url("emb/"), remote)
    with pytest.raises(FileNotFoundError):
        list_embeddings(s3.url("none/"), remote)
