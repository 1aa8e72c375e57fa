"""clip-retrieval's output put into the order of the shards."""

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from penstock.pipes import DataError
from penstock.recipes import reorder_embeddings as recipe
from penstock.recipes import reorder_shard
from penstock.recipes.reorder_embeddings import Config, main, reorder
from penstock.recipes.reorder_input import KeyFile
from penstock.recipes.row_file import RowFile

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

DIMENSION = 6
SAMPLES = {0: [0, 1, 2, 5, 6], 1: [0, 3], 2: [4, 1, 0, 2], 11: [2, 7]}
"""Shard to the indexes that have an embedding."""


def embedding(shard, index, kind=np.float16):
    """Return an embedding that no other sample has, exact in float16."""
    return (np.arange(DIMENSION) + 1 + 8 * index + 100 * shard).astype(kind)


def write_files(folder, parts, *, kind=np.float16, name="img_emb", column="image_path", order="C"):
    """Write (key, embedding) pairs as clip-retrieval does, one file for each list."""
    for place in (name, "metadata"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    for number, pairs in enumerate(parts):
        rows = np.array([row for _, row in pairs], kind).reshape(len(pairs), DIMENSION)
        np.save(folder / name / f"{name}_{number}.npy", np.asarray(rows, order=order))
        table = {column: [key for key, _ in pairs], "caption": ["x"] * len(pairs)}
        schema = pa.schema([(column, pa.string()), ("caption", pa.string())])
        pq.write_table(
            pa.table(table, schema),
            folder / f"metadata/metadata_{number}.parquet",
            row_group_size=3,
        )
    return folder


def shuffled(samples=SAMPLES, shard_width=5, index_width=4, kind=np.float16):
    """Return (key, embedding) of all samples, in an order that has nothing to do with shards."""
    pairs = [
        (f"{shard:0{shard_width}d}{index:0{index_width}d}", embedding(shard, index, kind))
        for shard, indexes in samples.items()
        for index in indexes
    ]
    return [pairs[i] for i in np.random.default_rng(3).permutation(len(pairs))]


def cut(pairs, *sizes):
    """Return lists of so many pairs, the last with what is left."""
    ends = [0, *itertools.accumulate(sizes), len(pairs)]
    return [pairs[a:b] for a, b in itertools.pairwise(ends)]


@pytest.fixture
def source(tmp_path):
    """Three files that every shard straddles."""
    return write_files(tmp_path / "clip", cut(shuffled(), 5, 4))


@pytest.fixture
def tars(tmp_path, make_tar):
    """Shards with more samples than there are embeddings, and one without any."""
    folder = tmp_path / "tars"
    folder.mkdir()
    samples = {**{s: sorted(i) for s, i in SAMPLES.items()}, 3: [0, 1]}
    samples[0] = [*samples[0], 9]
    for shard, indexes in samples.items():
        keys = [f"{shard:05d}{index:04d}" for index in indexes]
        make_tar([(key, {"txt": b"x"}) for key in keys], f"tars/{shard:05d}.tar")
    return str(folder / "*.tar")


def expect(shard, rows, kind=np.float16):
    whole = np.zeros((rows, DIMENSION), kind)
    for index in SAMPLES[shard]:
        whole[index] = embedding(shard, index, kind)
    return whole


def check(out, name="img_emb", width=5, rows=None, kind=np.float16):
    names = [f"{name}_{shard:0{width}d}.npy" for shard in SAMPLES]
    assert sorted(p.name for p in (out / name).iterdir()) == sorted(names)
    for shard in SAMPLES:
        found = np.load(out / name / f"{name}_{shard:0{width}d}.npy", allow_pickle=False)
        count = (rows or {}).get(shard, max(SAMPLES[shard]) + 1)
        assert found.dtype == np.dtype(kind)
        np.testing.assert_array_equal(found, expect(shard, count, kind))


def test_every_row_is_that_of_its_sample(source, tmp_path, capsys):
    main(Config(url=str(source), out=tmp_path / "out", index_width=4))
    check(tmp_path / "out")
    words = capsys.readouterr().out
    assert "13 embeddings in 4 files" in words
    assert "11 rows are zero since there is no embedding" in words
    assert not list((tmp_path / "out/.reorder").glob("rows_*"))


def test_tars_tell_widths_and_rows(source, tars, tmp_path, capsys):
    main(Config(url=str(source), out=tmp_path / "out", tars=tars))
    check(tmp_path / "out", rows={0: 10})
    words = capsys.readouterr().out
    assert f"1 shards have no embedding, such as {Path(tars).parent / '00003.tar'}" in words


@pytest.mark.parametrize(("shard_width", "index_width"), [(4, 4), (5, 4), (6, 3), (2, 1), (8, 9)])
def test_all_widths(tmp_path, make_tar, shard_width, index_width):
    pairs = shuffled(shard_width=shard_width, index_width=index_width)
    source = write_files(tmp_path / "clip", cut(pairs, 6))
    main(Config(url=str(source), out=tmp_path / "a", index_width=index_width))
    check(tmp_path / "a", width=shard_width)
    (tmp_path / "tars").mkdir()
    for shard in SAMPLES:
        key = f"{shard:0{shard_width}d}{0:0{index_width}d}"
        make_tar([(key, {"txt": b"x"})], f"tars/{shard:0{shard_width}d}.tar")
    main(Config(url=str(source), out=tmp_path / "b", tars=str(tmp_path / "tars")))
    check(tmp_path / "b", width=shard_width)
    main(Config(url=str(source), out=tmp_path / "c", index_width=index_width, shard_width=9))
    check(tmp_path / "c", width=9)


def test_shards_beyond_the_width_of_their_numbers(tmp_path):
    pairs = [(f"{s:05d}{i:04d}", embedding(s % 7, i)) for s in (99999, 100000) for i in (1, 0)]
    source = write_files(tmp_path / "clip", [pairs])
    main(Config(url=str(source), out=tmp_path / "out", index_width=4))
    names = sorted(p.name for p in (tmp_path / "out/img_emb").iterdir())
    assert names == ["img_emb_100000.npy", "img_emb_99999.npy"]
    found = np.load(tmp_path / "out/img_emb/img_emb_100000.npy")
    np.testing.assert_array_equal(found[1], embedding(100000 % 7, 1))


@pytest.mark.parametrize("kind", ["<f2", ">f2", "<f4", ">f4", "<f8", "int8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_types_and_orders_are_kept(tmp_path, kind, order):
    small = {s: [i % 2 for i in range(2)] for s in (0, 1)} if kind == "int8" else SAMPLES
    pairs = [(k, e.astype(kind)) for k, e in shuffled(small, kind=np.float64)]
    source = write_files(tmp_path / "clip", cut(pairs, 3), kind=kind, order=order)
    if order == "F":
        assert not np.load(source / "img_emb/img_emb_0.npy").flags.c_contiguous
    main(Config(url=str(source), out=tmp_path / "out", index_width=4))
    for shard, indexes in small.items():
        found = np.load(tmp_path / f"out/img_emb/img_emb_{shard:05d}.npy")
        assert found.dtype == np.dtype(kind).newbyteorder("=")
        for index in indexes:
            want = embedding(shard, index, np.float64).astype(kind)
            np.testing.assert_array_equal(found[index], want)


def test_texts_and_images_of_one_run(tmp_path):
    pairs = shuffled()
    source = write_files(tmp_path / "clip", cut(pairs, 7))
    write_files(source, cut([(k, -e) for k, e in pairs], 7), name="text_emb")
    main(Config(url=str(source), out=tmp_path / "out", index_width=4))
    check(tmp_path / "out")
    found = np.load(tmp_path / "out/text_emb/text_emb_00002.npy")
    np.testing.assert_array_equal(found, -expect(2, 5))


def with_keys(tmp_path, change, column="image_path", **options):
    pairs = [(change(key), row) for key, row in shuffled()]
    source = write_files(tmp_path / "clip", cut(pairs, 6), column=column)
    main(Config(url=str(source), out=tmp_path / "out", index_width=4, **options))


@pytest.mark.parametrize(
    "change",
    [
        lambda key: f"/data/00017/{key}.jpg",
        lambda key: f"s3://b/0.tar/{key}",
        lambda key: f"{key}.jpeg",
    ],
)
def test_folders_and_endings_of_keys(tmp_path, change):
    with_keys(tmp_path, change)
    check(tmp_path / "out")


def test_newer_key_column(tmp_path):
    with_keys(tmp_path, str, column="key")
    check(tmp_path / "out")


def test_a_named_column(tmp_path):
    with_keys(tmp_path, str, column="file", key_column="file")
    check(tmp_path / "out")


def test_image_path_counts_before_key(source, tmp_path):
    for path in (source / "metadata").iterdir():
        table = pq.read_table(path)
        pq.write_table(table.append_column("key", [["12345"] * len(table)]), path)
    main(Config(url=str(source), out=tmp_path / "out", index_width=4))
    check(tmp_path / "out")


def test_keys_as_numbers_and_dictionaries(tmp_path):
    pairs = shuffled()
    source = write_files(tmp_path / "clip", cut(pairs, 6))
    for number, part in enumerate(cut(pairs, 6)):
        keys = pa.array([int(key) for key, _ in part])
        if number:
            keys = pa.array([key for key, _ in part]).dictionary_encode()
        pq.write_table(pa.table({"key": keys}), source / f"metadata/metadata_{number}.parquet")
    with pytest.raises(SystemExit, match="keys do not say how many digits .* --shard_width"):
        main(Config(url=str(source), out=tmp_path / "out", index_width=4))
    main(Config(url=str(source), out=tmp_path / "out", index_width=4, shard_width=5))
    check(tmp_path / "out")


@pytest.mark.parametrize("padded", ["metadata", "img_emb"])
def test_files_are_paired_by_number_not_by_order(tmp_path, padded):
    pairs = [(f"00000{i:04d}", embedding(0, i)) for i in range(12)]
    source = write_files(tmp_path / "clip", [[p] for p in pairs[:11]] + [[], [pairs[11]]])
    for path in (source / padded).iterdir():  # sorted as text, these come in another order
        number = int(path.stem.rpartition("_")[2])
        path.rename(path.with_name(f"{padded}_{number:04d}{path.suffix}"))
    main(Config(url=str(source), out=tmp_path / "out", index_width=4))
    found = np.load(tmp_path / "out/img_emb/img_emb_00000.npy")
    np.testing.assert_array_equal(found, [row for _, row in pairs])


def fails(cfg, words):
    with pytest.raises(SystemExit, match=words) as ended:
        main(cfg)
    assert str(ended.value).startswith("error: ")


def test_what_does_not_belong_together_is_refused(source, tmp_path):
    cfg = Config(url=str(source), out=tmp_path / "out", index_width=4)
    table = source / "metadata/metadata_1.parquet"
    whole = pq.read_table(table)
    pq.write_table(whole.slice(1), table)
    fails(cfg, r"img_emb_1\.npy has 4 rows and .*metadata_1\.parquet 3")
    table.unlink()
    fails(cfg, r"img_emb_1\.npy has no metadata of the number 1: fetch")
    pq.write_table(whole, table)
    (source / "img_emb/img_emb_2.npy").unlink()
    fails(cfg, r"metadata_2\.parquet has no embeddings of the number 2")
    np.save(source / "img_emb/img_emb_2.npy", np.zeros((4, DIMENSION), np.float32))
    fails(cfg, r"img_emb_2\.npy has float32 \[6\] rows and .*img_emb_0\.npy float16 \[6\]")
    np.save(source / "img_emb/img_emb_02.npy", np.zeros((4, DIMENSION), np.float16))
    fails(cfg, r"have the same number 2: keep one")


@pytest.mark.parametrize("key", ["cat.jpg", None, "", "00000-0001", "1" * 19, "0000012x"])
def test_keys_without_digits_are_named(tmp_path, key):
    pairs = shuffled()
    pairs[8] = (key, pairs[8][1])
    source = write_files(tmp_path / "clip", cut(pairs, 7))
    cfg = Config(url=str(source), out=tmp_path / "out", index_width=4)
    fails(cfg, rf"metadata_1\.parquet, row 1: image_path is {key!r}; expected digits")


def test_no_guess_at_the_width(source, tmp_path, make_tar):
    cfg = Config(url=str(source), out=tmp_path / "out")
    fails(cfg, "keys are such as '[0-9]{9}'; give --index_width .* or the shards with --tars")
    make_tar([("a", {"txt": b""})], "x1.tar")
    fails(Config(**{**vars(cfg), "tars": str(tmp_path / "x1.tar")}), "such as .*x1.tar; give")
    wrong = Config(**{**vars(cfg), "tars": str(tmp_path / "x1.tar"), "index_width": 2})
    fails(wrong, "none of the [0-9] shards .* check --index_width")


def test_a_key_cut_too_early_is_no_giant_file(tmp_path):
    source = write_files(tmp_path / "clip", [[("123456789", embedding(1, 1))]])
    cfg = Config(url=str(source), out=tmp_path / "out", index_width=8)
    fails(cfg, r"shard 1 would have 23,456,790 rows, .* smaller --index_width")


def doubled(tmp_path, row):
    pairs = shuffled()
    key = pairs[2][0]
    return write_files(tmp_path / "clip", cut([*pairs, (key, row(pairs[2][1]))], 6)), key


def test_equal_duplicates_are_fine(tmp_path, capsys):
    source, _ = doubled(tmp_path, lambda row: row)
    main(Config(url=str(source), out=tmp_path / "out", index_width=4))
    check(tmp_path / "out")
    assert "1 embeddings came twice" in capsys.readouterr().out


def test_different_duplicates_are_named(tmp_path):
    source, key = doubled(tmp_path, lambda row: row + 1)
    cfg = Config(url=str(source), out=tmp_path / "out", index_width=4)
    words = (
        rf"sample {int(key[5:])} of shard {int(key[:5])} has two embeddings that differ: row 2 of "
        r".*img_emb_0\.npy and row 7 of .*img_emb_1\.npy; keep .* --on_duplicate first"
    )
    fails(cfg, words)
    main(Config(**{**vars(cfg), "on_duplicate": "first"}))
    check(tmp_path / "out")


def test_different_duplicates_in_one_file(tmp_path):
    pairs = shuffled()
    pairs.insert(4, (pairs[1][0], pairs[1][1] + 1))
    source = write_files(tmp_path / "clip", [pairs])
    cfg = Config(url=str(source), out=tmp_path / "out", index_width=4)
    fails(cfg, r"differ: row 1 of .*img_emb_0\.npy and row 4 of .*img_emb_0\.npy")
    main(Config(**{**vars(cfg), "on_duplicate": "first"}))
    check(tmp_path / "out")


@pytest.fixture
def gathered(monkeypatch):
    """List the shards that are gathered from their rows."""
    shards = []
    gather = reorder_shard.ShardWriter._gather

    def watch(self, shard, *rest):
        shards.append(shard)
        return gather(self, shard, *rest)

    monkeypatch.setattr(reorder_shard.ShardWriter, "_gather", watch)
    return shards


def test_what_is_done_is_passed_over_until_its_input_changes(source, tmp_path, gathered, capsys):
    cfg = Config(url=str(source), out=tmp_path / "out", index_width=4)
    main(cfg)
    assert sorted(gathered) == [0, 1, 2, 11]
    gathered.clear()
    main(cfg)
    assert not gathered
    assert "4 of them written before" in capsys.readouterr().out
    (tmp_path / "out/img_emb/img_emb_00001.npy").unlink()
    path = tmp_path / "out/img_emb/img_emb_00002.npy"
    path.write_bytes(path.read_bytes()[:-1])
    main(cfg)
    assert gathered == [1, 2]
    check(tmp_path / "out")
    gathered.clear()
    part = source / "img_emb/img_emb_2.npy"
    np.save(part, np.load(part) * 2)
    os.utime(part, ns=(1, 1))
    main(cfg)
    keys = pq.read_table(source / "metadata/metadata_2.parquet")["image_path"].to_pylist()
    assert gathered == sorted({int(key[:5]) for key in keys})
    found = np.load(tmp_path / f"out/img_emb/img_emb_{keys[0][:5]}.npy")
    want = embedding(int(keys[0][:5]), int(keys[0][5:])) * 2
    np.testing.assert_array_equal(found[int(keys[0][5:])], want)


KILLED = """
import os, signal, sys
from pathlib import Path
from penstock.recipes import reorder_shard
from penstock.recipes.reorder_embeddings import Config, main
gather = reorder_shard.ShardWriter._gather
def deadly(self, shard, *rest):
    if shard == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return gather(self, shard, *rest)
reorder_shard.ShardWriter._gather = deadly
main(Config(url=sys.argv[1], out=Path(sys.argv[2]), index_width=4))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on(source, tmp_path, gathered):
    out = tmp_path / "out"
    root = Path(recipe.__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", KILLED, str(source), str(out)]
    done = subprocess.run(command, env=env, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    there = sorted(p.name for p in (out / "img_emb").iterdir())
    assert there == ["img_emb_00000.npy", "img_emb_00001.npy", "img_emb_00002.npy.part"]
    main(Config(url=str(source), out=out, index_width=4))
    assert gathered == [2, 11]
    check(out)


def test_processes_share_the_shards(source, tars, tmp_path):
    out = tmp_path / "out"
    urls = {int(p.stem): str(p) for p in Path(tars).parent.glob("*.tar")}
    cfg = Config(url=str(source), out=out, tars=tars)
    files = [[name for name, _, _ in reorder(cfg, urls, rank, 3).shards] for rank in range(3)]
    assert [len(own) for own in files] == [2, 1, 1]
    assert len(set(itertools.chain(*files))) == 4
    check(out, rows={0: 10})


def test_shards_that_are_not_among_the_tars_are_left_out(source, tars, tmp_path, capsys):
    some = [tars.replace("*", "00001"), tars.replace("*", "00011")]
    main(Config(url=str(source), out=tmp_path / "out", tars=some))
    found = sorted(p.name for p in (tmp_path / "out/img_emb").iterdir())
    assert found == ["img_emb_00001.npy", "img_emb_00011.npy"]
    assert "9 rows of shards that are not among the tars" in capsys.readouterr().out


def test_only_the_keys_are_read(source, tmp_path, monkeypatch):
    asked = []
    read = pq.ParquetFile.iter_batches

    def watch(self, *args, **options):
        asked.append(options["columns"])
        return read(self, *args, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watch)
    main(Config(url=str(source), out=tmp_path / "out", index_width=4))
    assert asked == [["image_path"]] * 3


def test_remote_input(source, tars, tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in source.rglob("*"):
        if path.is_file():
            memory.pipe(f"/clip-out/{path.relative_to(source)}", path.read_bytes())
    main(Config(url="memory://clip-out", out=tmp_path / "out", index_width=4))
    check(tmp_path / "out")
    for path in Path(tars).parent.glob("*.tar"):
        memory.pipe(f"/clip-tars/{path.name}", path.read_bytes())
    remote = "memory://clip-tars/*.tar"
    main(Config(url="memory://clip-out", out=tmp_path / "b", tars=remote))
    check(tmp_path / "b")  # their samples are not known unfetched
    with pytest.raises(SystemExit) as ended:
        main(Config(url=str(tmp_path / "b"), tars=remote, check=True))
    assert ended.value.code == 1


def test_a_flat_folder_with_its_metadata_elsewhere(source, tmp_path):
    flat = tmp_path / "flat"
    (source / "img_emb").rename(flat)
    (source / "metadata").rename(tmp_path / "tables")
    cfg = Config(url=str(flat), out=tmp_path / "out", index_width=4)
    fails(cfg, r"no file such as metadata_0000\.parquet .* --metadata")
    main(Config(**{**vars(cfg), "metadata": str(tmp_path / "tables")}))
    check(tmp_path / "out")
    fails(
        Config(url=str(tmp_path / "none"), out=tmp_path / "o"), "there is no file such as img_emb"
    )


def test_damaged_files_are_named(source, tmp_path):
    cfg = Config(url=str(source), out=tmp_path / "out", index_width=4)
    path = source / "img_emb/img_emb_1.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    fails(cfg, r"img_emb_1\.npy has 173 bytes .* it was truncated")
    path.write_bytes(whole)
    (source / "metadata/metadata_0.parquet").write_bytes(b"PAR1 no")
    fails(cfg, r"metadata_0\.parquet is no Parquet file")
    np.save(path, np.zeros(4))
    fails(cfg, r"img_emb_1\.npy holds an array of shape \(4,\); expected \[rows, dimension\]")


def test_a_column_that_is_not_there(source, tmp_path):
    from penstock.pipes.remote import Remote

    with pytest.raises(DataError, match=r"no column 'name'; its columns are image_path, caption"):
        KeyFile(str(source / "metadata/metadata_0.parquet"), Remote(), "name")


@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_in_any_order_from_a_large_file(tmp_path, order, monkeypatch):
    from penstock.pipes.remote import Remote
    from penstock.recipes import row_file

    array = np.arange(5000 * 7, dtype=np.float32).reshape(5000, 7)
    np.save(tmp_path / "x_0.npy", np.asarray(array, order=order))
    monkeypatch.setattr(row_file, "NEAR", {True: 300, False: 300})
    monkeypatch.setattr(row_file, "AT_ONCE", 900)
    file = RowFile(str(tmp_path / "x_0.npy"), Remote())
    sizes, read = [], file.bytes.read
    monkeypatch.setattr(file.bytes, "read", lambda at, n: sizes.append(n) or read(at, n))
    numbers = np.random.default_rng(0).integers(0, 5000, 400)
    np.testing.assert_array_equal(file.take(numbers), array[numbers])
    assert len(file.take(np.empty(0, np.int64))) == 0
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in file.parts()]), array)
    assert max(sizes) <= 900
    assert len(sizes) < (400 + 5000 // 30) * (7 if order == "F" else 1)  # near ones come at once


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"index_width": 0}, "index_width must be 1 to 9, got 0"),
        ({"out": None}, "--out"),
        ({"check": True}, "--tars"),
        ({"shard_width": 0}, "shard_width must be at least 1"),
    ],
)
def test_options_are_checked(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        Config(**{"url": "x", "out": tmp_path, **options})


@pytest.mark.slow
def test_under_torchrun(source, tars, tmp_path):
    out = tmp_path / "out"
    root = Path(recipe.__file__).parents[2]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *("-m", recipe.__name__, f"--url={source}", f"--out={out}", f"--tars={tars}"),
    ]
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "13 embeddings in 4 files" in done.stdout
    check(out, rows={0: 10})
    assert not list((out / ".reorder").glob("rows_*"))
