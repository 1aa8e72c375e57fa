"""Folders of per-shard embeddings, checked against their shards."""

import io

import numpy as np
import pytest

from penstock.recipes.check_embeddings import check_folder
from penstock.recipes.reorder_embeddings import Config, main
from penstock.recipes.shard_keys import ShardKeys

INDEXES = {0: [0, 1, 3], 1: [0, 1, 2, 4], 2: [1]}


@pytest.fixture
def tars(tmp_path, make_tar):
    (tmp_path / "tars").mkdir()
    found = {}
    for shard, indexes in INDEXES.items():
        keys = [f"{shard:05d}{index:04d}" for index in indexes]
        found[shard] = make_tar([(k, {"txt": b"x"}) for k in keys], f"tars/{shard:05d}.tar")
    return found


@pytest.fixture
def folder(tmp_path):
    """Right files for the shards, float16 [rows, 3]."""
    path = tmp_path / "emb"
    path.mkdir()
    for shard, indexes in INDEXES.items():
        rows = np.zeros((max(indexes) + 1, 3), np.float16)
        rows[indexes] = np.arange(len(indexes) * 3).reshape(-1, 3) + 1
        np.save(path / f"img_emb_{shard:04d}.npy", rows)
    return path


def change(folder, shard, fn):
    path = folder / f"img_emb_{shard:04d}.npy"
    np.save(path, fn(np.load(path)))


def check(folder, tars, **options):
    return check_folder(str(folder), tars, ShardKeys(), **options)


def test_a_right_folder(folder, tars, tmp_path, capsys):
    problems = check(folder, tars)
    assert not problems.count
    assert (problems.files, problems.rows) == (3, 11)
    main(Config(url=str(folder), tars=str(tmp_path / "tars"), check=True))  # exit status 0
    words = capsys.readouterr().out
    assert "3 files (3 of float16 [3]), 11 rows" in words
    assert words.rstrip().endswith("nothing is wrong")


def zero(*rows):
    def fn(array):
        array[list(rows)] = 0
        return array

    return fn


def put(row, value):
    def fn(array):
        array[row, 1] = value
        return array

    return fn


@pytest.mark.parametrize(
    ("shard", "fn", "kinds", "words"),
    [
        # What embedding-dataset-reordering 1.0.0 writes where it fills a gap ...
        (
            1,
            lambda a: a.astype(np.float64),
            {"unlike_file": 1, "float64": 1},
            "float64 [3], most are float16 [3]",
        ),
        # ... and where a shard straddles two files: the later one's rows alone.
        (1, zero(0, 1), {"zero_row": 2}, "000010000, 000010001"),
        # ... and where an embedding comes twice: all behind it are shifted.
        (0, lambda a: a[[0, 0, 1, 3]], {"stray_row": 1}, "row 2"),
        (1, lambda a: a[:2], {"missing_row": 2}, "000010002, 000010004"),
        (1, put(2, np.nan), {"not_finite": 1}, "000010002"),
        (1, put(4, np.inf), {"not_finite": 1}, "000010004"),
        (2, lambda a: a[:, :2], {"unlike_file": 1}, "float16 [2]"),
        (2, lambda a: a[:, 0], {"damaged_file": 1}, "shape (2,)"),
    ],
)
def test_what_is_wrong_is_named(folder, tars, shard, fn, kinds, words):
    change(folder, shard, fn)
    problems = check(folder, tars)
    assert dict(problems.counts) == kinds
    assert f"{folder}/img_emb_{shard:04d}.npy: " in str(problems)
    assert words in str(problems)


def test_a_shifted_folder_without_gaps_shows_at_its_end(folder, tars):
    change(folder, 0, lambda a: np.concatenate([a[:1], a]))
    assert dict(check(folder, tars).counts) == {"stray_row": 2, "zero_row": 1}


def test_files_and_shards_without_each_other(folder, tars, tmp_path, capsys):
    (folder / "img_emb_0001.npy").rename(folder / "img_emb_0007.npy")
    main_fails(folder, tmp_path / "tars")
    words = capsys.readouterr().out
    assert "1  shards without a file of embeddings" in words
    assert f"{tmp_path}/tars/00001.tar: no img_emb file of the number 1" in words
    assert f"{folder}/img_emb_0007.npy: there is no shard 7" in words
    assert "2 problems" in words


def main_fails(folder, tars):
    with pytest.raises(SystemExit) as ended:
        main(Config(url=str(folder), tars=str(tars), check=True))
    assert ended.value.code == 1


def test_damaged_files_and_shards(folder, tars, tmp_path, make_tar):
    path = folder / "img_emb_0000.npy"
    path.write_bytes(path.read_bytes()[:-1])
    file = io.BytesIO()
    np.save(file, np.array([{}], object), allow_pickle=True)
    (folder / "img_emb_0001.npy").write_bytes(file.getvalue())
    make_tar([("cat", {"txt": b"x"})], "tars/00002.tar")
    problems = check(folder, tars)
    assert dict(problems.counts) == {"damaged_file": 2, "damaged_shard": 1}
    assert "it was truncated" in str(problems)
    assert "would have to be unpickled" in str(problems)
    assert "key 'cat' does not begin with the digits of its tar" in str(problems)


def test_many_bad_rows_are_counted_and_the_first_named(tmp_path, make_tar):
    keys = [f"00000{i:04d}" for i in range(30)]
    tars = {0: make_tar([(key, {"txt": b"x"}) for key in keys])}
    np.save(tmp_path / "img_emb_0.npy", np.zeros((30, 2), np.float16))
    problems = check(tmp_path, tars)
    assert problems.counts["zero_row"] == 30
    assert f"{', '.join(keys[:8])}, and 22 more" in str(problems)


def test_both_kinds_in_one_folder(folder, tars, tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    folder.rename(whole / "img_emb")
    (whole / "text_emb").mkdir()
    np.save(whole / "text_emb/text_emb_00000.npy", np.ones((4, 5), np.float32))
    problems = check(whole, tars)
    assert dict(problems.counts) == {"missing_file": 2, "stray_row": 1}
    assert problems.kinds == {"float16 [3]": 3, "float32 [5]": 1}


def test_processes_share_the_check(folder, tars):
    change(folder, 1, zero(0))
    change(folder, 2, zero(1))
    np.save(folder / "img_emb_0009.npy", np.zeros((1, 3), np.float16))
    parts = [check(folder, tars, rank=rank, world_size=2) for rank in range(2)]
    assert [part.files for part in parts] == [2, 1]
    total, alone = type(parts[0]).sum(parts), check(folder, tars)
    assert total.counts == alone.counts == {"zero_row": 2, "extra_file": 1}
    assert sorted(str(total).splitlines()) == sorted(str(alone).splitlines())
