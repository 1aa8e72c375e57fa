"""Every embedding is its own image's, whatever is wrong with files, however a run goes on."""

import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.pipes import DataError, EmbeddingJoiner, ManifestReader, ShardLister, verify_resume
from penstock.pipes.verify import fingerprints

pytestmark = [pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]
INDICES = {0: [0, 1, 2, 5, 6], 3: list(range(9)), 12: [7, 3, 30, 4]}


@pytest.fixture
def data(embed, tmp_path):
    return embed(tmp_path, INDICES)


def reader(data, **how):
    return ShardLister(str(data.tars), **how).read_tar()


def load(pipe, tmp_path, batch=4, **how):
    pipe = pipe.batch(batch).lanes(1, by="shards", repeat=False).decode()
    return pipe.loader(quarantine=tmp_path / "q.jsonl", **how)


def whys(tmp_path):
    """Return the reasons in the quarantine, by key."""
    path = tmp_path / "q.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {row["key"]: row["reason"] for row in map(json.loads, lines)}


def test_each_sample_gets_its_own_row(data, tmp_path, check_own):
    batches = list(load(reader(data).join_embeddings(data.rows).shuffle(7), tmp_path))
    assert sum(map(check_own, batches)) == 18
    assert sorted(k for b in batches for k in b["__key__"]) == sorted(data.keys)
    assert batches[0]["image_embedding"].shape == (4, 4)
    assert batches[0]["image_embedding"].dtype == torch.float32


def test_rows_stay_unread_until_they_are_loaded(data, tmp_path):
    pipe = reader(data, shuffle=False).join_embeddings(data.rows, field="e", dtype="float16")
    sample = next(iter(pipe))
    assert repr(sample["e"]) == f"EmbeddingRow(row 0 of {data.rows}/img_emb_000.npy)"
    (loaded,) = pipe.batch(4).load().loader(epoch_batches=1)
    (batch,) = pipe.batch(4).decode().loader(epoch_batches=1)
    for rows in (loaded["e"], batch["e"]):
        assert rows.tolist() == [[1, i + 1, 1, 1] for i in (0, 1, 2, 5)]
        assert rows.dtype == torch.float16


def test_several_are_joined(data, tmp_path, check_own):
    texts = tmp_path / "texts"
    texts.mkdir()
    for shard in INDICES:
        np.save(texts / f"text_emb_{shard}.npy", 2 * data.array(shard).astype(np.float16))
    pipe = reader(data).join_embeddings(data.rows).join_embeddings(texts, field="text_embedding")
    for batch in load(pipe, tmp_path):
        check_own(batch)
        check_own({**batch, "text_embedding": batch["text_embedding"] / 2}, "text_embedding")
        assert batch["text_embedding"].dtype == torch.float16
    with pytest.raises(DataError, match="has a field 'image_embedding' already"):
        list(load(reader(data).join_embeddings(data.rows).join_embeddings(texts), tmp_path))


@settings(max_examples=40, deadline=None)
@given(
    indices=st.dictionaries(
        st.integers(0, 99_999),
        st.lists(st.integers(0, 60), unique=True, min_size=1, max_size=9),
        min_size=1,
        max_size=4,
    ),
    order=st.sampled_from("CF"),
    dtype=st.sampled_from(["<f2", ">f2", "<f4", ">f4", "<f8"]),
    how=st.sampled_from([{}, {"index_width": 4}, {"shard_width": 5}]),
    extra=st.integers(0, 3),
    seed=st.integers(0, 9),
)
def test_whatever_the_order_of_keys_and_elements(
    indices, order, dtype, how, extra, seed, embed, tmp_path_factory, check_own
):
    folder = tmp_path_factory.mktemp("data")
    small = {shard % 2000: own for shard, own in indices.items()}  # float16 holds them all
    data = embed(folder, small)
    for shard in small:
        rows = np.concatenate([data.array(shard), np.full((extra, 4), 9.0)])
        data.write_rows(shard, rows.astype(dtype, order=order))
    batches = list(load(reader(data, seed=seed).join_embeddings(data.rows, **how), folder))
    assert sorted(k for b in batches for k in b["__key__"]) == sorted(data.keys)
    assert sum(map(check_own, batches)) == len(data.keys)


def spoil(data, shard, fault):
    """Spoil a shard's embeddings; return the indices that lose theirs."""
    own, path = data.indices[shard], data.rows / f"img_emb_{shard:03d}.npy"
    rows, raw = data.array(shard), path.read_bytes()
    if fault == "gone":
        path.unlink()
    elif fault == "cut":
        path.write_bytes(raw[:-1])
    elif fault == "garbage":
        path.write_bytes(b"not an array at all")
    elif fault == "pickle":
        np.save(path, np.array([[{"a": 1}]], object), allow_pickle=True)
    elif fault == "flat":
        data.write_rows(shard, rows.reshape(-1))
    elif fault == "wide":
        data.write_rows(shard, np.concatenate([rows, rows], 1))
    elif fault == "integers":
        data.write_rows(shard, rows.astype(np.int32))
    elif fault == "short":
        data.write_rows(shard, rows[:-1])
        return [max(own)]
    elif fault == "zero":
        rows[own[0]] = 0
        data.write_rows(shard, rows)
        return own[:1]
    elif fault == "nan":
        rows[own[0], 1] = np.nan
        data.write_rows(shard, rows)
        return own[:1]
    return own


MISSES = ("gone", "short", "zero")
FAULTS = (*MISSES, "cut", "garbage", "pickle", "flat", "wide", "integers", "nan")


@settings(max_examples=60, deadline=None)
@given(
    fault=st.sampled_from(FAULTS),
    shard=st.sampled_from([1, 2, 3]),
    sizes=st.tuples(*[st.integers(2, 6)] * 3),
    looks=st.booleans(),
    seed=st.integers(0, 5),
    batch=st.integers(1, 5),
)
def test_a_fault_costs_its_own_samples_and_no_others(
    fault, shard, sizes, looks, seed, batch, embed, tmp_path_factory, check_own
):
    """What DALLE2-pytorch did not: there the rest of the shard got the rows of the one before."""
    folder = tmp_path_factory.mktemp("data")
    # A file of the right dimension comes first: 0 is never spoiled.
    data = embed(folder, {0: [0, 1], **{i + 1: list(range(n)) for i, n in enumerate(sizes)}})
    skip = "skip" if looks else "raise"
    pipe = reader(data, seed=seed)
    if fault == "gone" and not looks:
        lost = spoil(data, shard, fault)
        with pytest.raises(ValueError, match=f"1 of 4 tars have no .npy .*{shard:05d}.tar"):
            pipe.join_embeddings(data.rows)
        return
    if fault != "gone" or seed % 2:  # gone before the files are listed, or after
        joined = pipe.join_embeddings(data.rows, on_missing=skip)
        lost = spoil(data, shard, fault)
    else:
        lost = spoil(data, shard, fault)
        joined = pipe.join_embeddings(data.rows, on_missing=skip)
    lost = {f"{shard:05d}{i:04d}" for i in lost}
    # What is found when it is loaded has its place taken by a good sample of its batch.
    batch = batch if looks and fault != "nan" else 24
    on_error = "raise" if looks and fault in MISSES else "skip"
    loader = load(joined, folder, batch, on_error=on_error)
    seen = []
    for made in loader:
        check_own(made)
        places = set(made.get("__filled__", []))
        seen += [key for i, key in enumerate(made["__key__"]) if i not in places]
    assert sorted(seen) == sorted(set(data.keys) - lost)
    assert loader.skipped == len(lost)
    assert set(whys(folder)) == lost


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("gone", r"wants row \d: .*img_emb_003.npy.* is gone"),
        ("short", r"wants row 8: .*img_emb_003.npy has 8 rows"),
        ("zero", r"row 0 of .*img_emb_003.npy is all zeros: no embedding was made of this sample"),
        ("nan", r"row 0 of .*img_emb_003.npy holds NaN or infinity"),
        ("cut", r"wants row 0: .*/img_emb_003.npy .* promises 272 .*truncated"),
        ("garbage", r"wants row 0: .*/img_emb_003.npy is no .npy file"),
        (
            "pickle",
            r"wants row 0: .*/img_emb_003.npy holds Python objects, which would have",
        ),
        (
            "flat",
            r"wants row 0: .*/img_emb_003.npy: .* found the shape \(36,\)",
        ),
        (
            "wide",
            r"wants row 0: .*/img_emb_003.npy: its embeddings have 8 dimensions, expected 4",
        ),
        (
            "integers",
            r"wants row 0: .*/img_emb_003.npy: expected float16, float32 or float64, found int32",
        ),
    ],
)
def test_errors_name_tar_key_file_and_row(fault, words, data, tmp_path):
    pipe = reader(data, shuffle=False).join_embeddings(data.rows)
    spoil(data, 3, fault)
    name = r"sample '00003000\d' of .*00003.tar: "
    with pytest.raises(DataError, match=f"^{name}(field 'image_embedding': )?{words}"):
        list(load(pipe, tmp_path))


def test_misses_are_counted_with_their_reasons(data, tmp_path, check_own):
    spoil(data, 3, "short")
    rows = data.array(0)
    rows[5] = 0
    data.write_rows(0, rows)
    (data.rows / "img_emb_012.npy").unlink()
    loader = load(reader(data).join_embeddings(data.rows, on_missing="skip"), tmp_path)
    seen = [key for b in loader if check_own(b) for key in b["__key__"]]
    reasons = whys(tmp_path)
    assert len(seen) == 12
    assert set(seen) | set(reasons) == set(data.keys)
    assert loader.skipped == len(reasons) == 6
    assert reasons["000030008"].endswith("img_emb_003.npy has 8 rows")
    assert reasons["000000005"].startswith("row 5 of ")
    assert "row 30: there is no .npy file of number 12 in" in reasons["000120030"]


def test_a_zero_row_is_found_by_the_order_half_only_where_it_looks(data, open_lane, take):
    data.write_rows(3, np.zeros((9, 4), np.float32))
    order, lane = open_lane(reader(data).join_embeddings(data.rows))
    assert len(take(order, 18)) == 18
    assert not lane.skipped
    pipe = reader(data).join_embeddings(data.rows, on_missing="skip").lanes(1, repeat=False)
    order, lane = open_lane(pipe)
    assert len(take(order, 18)) == 9
    assert len(lane.skipped) == 9
    assert {s.url for s in lane.skipped} == {str(data.tars / "00003.tar")}


def test_nothing_but_misses_ends_in_an_error(data, open_lane, take, monkeypatch):
    for shard in INDICES:
        data.write_rows(shard, np.zeros((40, 4), np.float32))
    monkeypatch.setattr("penstock.pipes.filter.PATIENCE", 50)
    order, _ = open_lane(reader(data).join_embeddings(data.rows, on_missing="skip"))
    with pytest.raises(ValueError, match=r"EmbeddingJoiner\('image_embedding'\) let no sample thr"):
        take(order, 1)


def test_rows_in_the_order_of_the_samples_are_refused(data, tmp_path):
    """clip-retrieval's own output, which has no rows for images that failed."""
    for shard in (0, 12):
        rows = data.array(shard)
        data.write_rows(shard, rows[sorted(INDICES[shard])])
    for missing in ("raise", "skip"):
        pipe = reader(data, shuffle=False).join_embeddings(data.rows, on_missing=missing)
        with pytest.raises(
            DataError,
            match="img_emb_000.npy: it has 5 rows, as many as the tar has samples, and their keys "
            "go up to row 6: row 3 holds an embedding though no sample has this index. Its rows",
        ):
            list(load(pipe, tmp_path))


def test_a_sorted_file_that_ends_early_is_none_of_those(embed, tmp_path, check_own):
    data = embed(tmp_path, {0: [0, 1, 3, 4]})
    data.write_rows(0, data.array(0)[:4])  # four samples, four rows, one of them a gap
    loader = load(reader(data).join_embeddings(data.rows, on_missing="skip"), tmp_path)
    assert sum(map(check_own, loader)) == 3
    assert list(whys(tmp_path)) == ["000000004"]


@pytest.mark.parametrize("missing", ["raise", "skip"])
def test_keys_that_do_not_say_their_row(missing, data, tmp_path, make_tar):
    data.write_tar(3, {i: {"txt": b"x"} for i in range(4)}, key="img_")
    pipe = reader(data, shuffle=False).join_embeddings(data.rows, on_missing=missing)
    with pytest.raises(DataError, match="'img_0000' does not begin with the digits of its tar, '0"):
        list(load(pipe, tmp_path))
    data.write_tar(3, {i: {"txt": b"x"} for i in range(4)}, key="00004")
    pipe = reader(data, shuffle=False).join_embeddings(data.rows, index_width=4, on_missing=missing)
    with pytest.raises(DataError, match="key '000040000' is of shard 4 and stands in tar 3"):
        list(load(pipe, tmp_path))


def test_bfloat16(data, tmp_path, check_own):
    for shard in INDICES:
        whole = torch.from_numpy(data.array(shard)).to(torch.bfloat16)
        data.write_rows(shard, whole.view(torch.int16).numpy().view(np.uint16))
    pipe = reader(data).join_embeddings(data.rows, stored="bfloat16")
    batches = list(load(pipe, tmp_path))
    assert batches[0]["image_embedding"].dtype == torch.bfloat16
    assert sum(map(check_own, batches)) == 18
    with pytest.raises(DataError, match="say stored='bfloat16'"):
        list(load(reader(data).join_embeddings(data.rows), tmp_path))


@pytest.mark.parametrize("name", ["npy", "img_emb", "text_emb", "clip.npy"])
def test_embeddings_in_the_tar(name, data, tmp_path, check_own):
    def npy(row):
        file = io.BytesIO()
        np.save(file, row)
        return file.getvalue()

    for shard, own in INDICES.items():
        rows = data.array(shard)
        fields = {i: {"txt": b"x", name: npy(rows[i])} for i in own}
        if name == "img_emb":
            fields = {i: {**f, "text_emb": npy(-rows[i])} for i, f in fields.items()}
        data.write_tar(shard, fields)
    how = {"member": name} if name == "img_emb" else {}
    batches = list(load(reader(data).join_embeddings(dim=4, **how), tmp_path))
    assert sum(map(check_own, batches)) == 18
    assert name not in batches[0]
    batches = list(load(reader(data), tmp_path))  # without the joiner they are arrays all the same
    assert sum(check_own(b, name) for b in batches) == 18
    both = reader(data).join_embeddings(**how).join_embeddings(data.rows, field="beside")
    assert sum(check_own(b) and check_own(b, "beside") for b in load(both, tmp_path)) == 18


def test_what_is_wrong_with_embeddings_in_the_tar(make_tar, tmp_path):
    good = io.BytesIO()
    np.save(good, np.ones(4))
    samples = [
        ("a", {"txt": b"", "npy": good.getvalue()}),
        ("b", {"txt": b""}),
        ("c", {"txt": b"", "npy": good.getvalue(), "x.npy": good.getvalue()}),
        ("d", {"txt": b"", "pt": b"\x80\x02"}),
        ("e", {"txt": b"", "npy": good.getvalue()[:-9]}),
    ]
    pipe = ShardLister(make_tar(samples), shuffle=False).read_tar().join_embeddings()
    loader = load(pipe, tmp_path, batch=5, on_error="skip")
    (batch,) = loader
    assert batch["__filled__"] == [1, 2, 3, 4]
    reasons = whys(tmp_path)
    assert "00000.tar: has no member npy or img_emb or text_emb in the tar; its f" in reasons["b"]
    assert "has several embeddings, npy, x.npy: say with member=… which" in reasons["c"]
    assert "member 'pt' is what torch.save writes, a pickle: loading one" in reasons["d"]
    assert "has 151 bytes and its header promises 160" in reasons["e"]
    # Where the order half looks, what is not there is passed over; what is bad stays an error.
    pipe = ShardLister(make_tar(samples[:2]), shuffle=False).read_tar()
    (batch,) = load(pipe.join_embeddings(on_missing="skip"), tmp_path)
    assert batch["__key__"] == ["a"]
    with pytest.raises(DataError, match="has no member 'y' in the tar"):
        list(load(pipe.join_embeddings(member="y"), tmp_path))


def graph(data, missing, lanes=2):
    return (
        ShardLister(str(data.tars), seed=4)
        .read_tar()
        .join_embeddings(data.rows, on_missing=missing)
        .shuffle(7)
        .batch(3)
        .lanes(lanes)
        .decode()
        .drop_caption(0.3)
    )


@pytest.mark.parametrize("missing", ["raise", "skip"])
def test_resuming_is_exact(missing, data):
    if missing == "skip":
        spoil(data, 3, "short")
        spoil(data, 0, "zero")
        (data.rows / "img_emb_012.npy").unlink()
    pipe = graph(data, missing)
    report = verify_resume(
        lambda workers, rank, ranks: pipe.loader(
            workers, rank=rank, world_size=ranks, epoch_batches=5, multiprocessing_context=None
        ),
        legs=((0, 1), (2, 1), (0, 3), (1, 2)),
    )
    assert report.batches > 5


def test_spawned_workers_give_the_same(data):
    spoil(data, 3, "short")
    expected = [fingerprints(b) for b in graph(data, "skip").loader(epoch_batches=4)]
    loader = graph(data, "skip").loader(1, epoch_batches=4, multiprocessing_context="spawn")
    assert [fingerprints(b) for b in loader] == expected
    loader.close()


def test_a_state_is_refused_where_the_files_differ_and_not_where_they_moved(data, tmp_path):
    loader = graph(data, "raise").loader(epoch_batches=4)
    next(iter(loader))
    state = loader.state_dict()
    assert str(tmp_path) not in json.dumps(state)
    moved = data.rows.rename(tmp_path / "moved")
    data.rows = moved
    loader = graph(data, "raise").loader(epoch_batches=4)
    loader.load_state_dict(state)
    assert loader.state_dict() == state
    with pytest.raises(ValueError, match='EmbeddingJoiner had on_missing="raise" when'):
        graph(data, "skip").loader(epoch_batches=4).load_state_dict(state)
    for shard in INDICES:
        data.write_rows(shard, np.ones((40, 5), np.float32))
    with pytest.raises(ValueError, match="EmbeddingJoiner had dim=4 when it was saved"):
        graph(data, "raise").loader(epoch_batches=4).load_state_dict(state)
    for shard in INDICES:
        data.write_rows(shard, data.array(shard))
    for path in list(moved.iterdir()):
        path.rename(moved / f"other_{path.name}")
    with pytest.raises(ValueError, match="EmbeddingJoiner had files="):
        graph(data, "raise").loader(epoch_batches=4).load_state_dict(state)


def test_lengths_are_known_where_no_sample_is_passed_over(data):
    assert len(graph(data, "raise").loader()) == 6
    with pytest.raises(TypeError, match="EmbeddingJoiner lets an unknown number of samples thr"):
        len(graph(data, "skip").loader())


def test_a_replaced_file_is_not_read(data, open_lane, take, monkeypatch):
    monkeypatch.setattr("penstock.pipes.embedding_rows.EmbeddingRows.MOST_SAMPLES", 1)
    order, _ = open_lane(reader(data, shuffle=False).join_embeddings(data.rows))
    refs = take(order, 6)
    for ref in refs:  # on to the next shard: the first one's file is closed
        order.resolve(ref)
    data.write_rows(0, np.ones((90, 4), np.float32))
    with pytest.raises(RuntimeError, match=r"img_emb_000.npy was replaced during the run"):
        order.resolve(refs[0])


def test_mixed_sources_share_a_joiner(embed, tmp_path, check_own):
    one = embed(tmp_path / "a", {0: [0, 1, 2], 1: [0, 1]})
    two = embed(tmp_path / "b", {2: [0, 1], 3: [5]})
    for path in two.rows.iterdir():
        path.rename(one.rows / path.name)
    pipe = reader(one).mix(reader(two)).join_embeddings(one.rows)
    loader = load(pipe, tmp_path)
    assert sum(map(check_own, loader)) == 8
    each = reader(one).join_embeddings(one.rows).mix(reader(two).join_embeddings(one.rows))
    assert sum(map(check_own, load(each, tmp_path))) == 8


def test_arguments_that_make_no_sense_are_refused(data, tmp_path):
    pipe = reader(data)
    for how, fault in (
        ({"on_missing": "ignore"}, "on_missing must be 'raise' or 'skip', got 'ignore'"),
        ({"stored": "float8"}, "stored is 'bfloat16' or None"),
        ({"dim": 0}, "dim is a number of elements"),
        ({"field": "__key__"}, "field is the name of a field"),
        ({"member": "npy"}, "member is a field of the tar"),
        ({"dtype": "int8"}, "dtype is one of"),
        ({"index_width": 4, "shard_width": 4}, "give one of them"),
    ):
        with pytest.raises(ValueError, match=fault):
            pipe.join_embeddings(data.rows, **how)
    (tmp_path / "m.csv").write_text("image,text\na.jpg,b\n")
    with pytest.raises(TypeError, match="joins to samples of tars; these come from a ManifestRead"):
        ManifestReader(tmp_path / "m.csv").join_embeddings(data.rows)
    joiner = EmbeddingJoiner(pipe, data.rows, storage_options={"secret": "hush"})
    assert "hush" not in repr(joiner) + json.dumps(joiner.arguments())
