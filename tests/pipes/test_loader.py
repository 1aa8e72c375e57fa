"""The loader: epochs, length, one position, refusals, repeat=False."""

import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from penstock.pipes import DataError, Pipe, ShardLister, merge_states
from penstock.pipes.verify import fingerprints


@pytest.fixture
def pipe(shards: str) -> Pipe:
    return ShardLister(shards, seed=1).read_tar().shuffle(15).batch(4).lanes(2).load()


def names(batch: dict[str, Any]) -> list[tuple[str, str]]:
    return list(zip(batch["__url__"], batch["__key__"], strict=True))


def test_a_batch_has_its_names_and_number(pipe: Pipe) -> None:
    batch = next(iter(pipe.loader()))
    assert batch["__batch__"] == 0
    assert len(batch["__key__"]) == len(batch["__url__"]) == 4
    assert batch["__ref__"].shape == (4, 3)
    assert all(isinstance(data, bytes) and data for data in batch["jpg"])


def test_an_epoch_has_len_steps_and_the_next_goes_on(pipe: Pipe) -> None:
    loader = pipe.loader()
    assert len(loader) == 95 // 4
    first = [b["__batch__"] for b in loader]
    second = [b["__batch__"] for b in loader]
    assert first == list(range(23))
    assert second == list(range(23, 46))
    assert loader.epoch == 2


def test_break_then_for_goes_on(pipe: Pipe) -> None:
    loader = pipe.loader()
    for batch in loader:
        if batch["__batch__"] == 5:
            break
    assert [b["__batch__"] for b in loader] == list(range(6, 23))


def test_len_is_the_same_on_every_rank_and_right(pipe: Pipe) -> None:
    for ranks in (1, 2, 3, 5):
        loaders = [pipe.loader(rank=r, world_size=ranks) for r in range(ranks)]
        assert {len(loader) for loader in loaders} == {-(-23 // ranks)}
        assert {sum(1 for _ in loader) for loader in loaders} == {-(-23 // ranks)}


def test_five_samples_with_batch_4_four_workers_and_four_ranks(
    make_tar: Callable[..., str], fields_of: Callable[[int], dict[str, bytes]]
) -> None:
    tar = make_tar([(f"{i}", fields_of(i)) for i in range(5)])
    pipe = ShardLister(tar).read_tar().shuffle(3).batch(4).load()
    got = []
    for rank in range(4):
        loader = pipe.loader(4, rank=rank, world_size=4)
        assert len(loader) == 1
        got += [b for _ in range(5) for b in loader]
        loader.close()
    order = [n for b in sorted(got, key=lambda b: b["__batch__"]) for n in names(b)]
    assert [b["__batch__"] for b in sorted(got, key=lambda b: b["__batch__"])] == list(range(20))
    for start in range(0, 80, 5):  # every pass has all five
        assert len(set(order[start : start + 5])) == 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p.filter(bool), "Filter"),
        (lambda p: p.filter_size(min_side=8), "SizeFilter"),
        (lambda p: p.mix(ShardLister("x.tar", seed=4).read_tar()), "mix"),
    ],
)
def test_len_says_why_it_is_not_known_and_what_to_pass(
    shards: str, change: Callable[[Pipe], Pipe], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from penstock.pipes.tar import TarReader

    real = TarReader.shard_sizes
    monkeypatch.setattr(
        TarReader,
        "shard_sizes",
        lambda self, skip: np.ones(1, np.int64) if len(self.source.urls) == 1 else real(self, skip),
    )
    pipe = change(ShardLister(shards).read_tar()).batch(4).load()
    with pytest.raises(TypeError, match=f"{words}.*epoch_batches"):
        len(pipe.loader())
    assert len(pipe.loader(epoch_batches=7)) == 7


def test_len_by_shards_is_not_known(shards: str) -> None:
    loader = ShardLister(shards).read_tar().batch(4).lanes(2, by="shards").load().loader()
    with pytest.raises(TypeError, match='by shards|by="shards"'):
        len(loader)


def test_len_with_a_pixel_budget_is_counted(shards: str) -> None:
    pipe = (
        ShardLister(shards)
        .read_tar()
        .bucket_by_aspect_ratio(64, pixels=3 * 64 * 64, step=16)
        .load()
    )
    loader = pipe.loader()
    seen = sum(len(b["__key__"]) for _ in range(20) for b in loader)
    assert seen / (95 * 20) == pytest.approx(1, abs=0.1)


def test_repeat_false_gives_each_sample_once_in_an_order_that_no_consumer_changes(
    shards: str,
) -> None:
    orders = set()
    for lanes, runs in ((1, [(1, 0), (3, 2)]), (5, [(1, 0), (1, 3), (2, 1), (4, 2), (3, 0)])):
        orders.clear()
        for ranks, workers in runs:
            pipe = (
                ShardLister(shards, seed=2)
                .read_tar()
                .shuffle(9)
                .batch(4)
                .lanes(lanes, repeat=False)
                .load()
            )
            got = []
            for rank in range(ranks):
                loader = pipe.loader(workers, rank=rank, world_size=ranks)
                mine = list(loader)
                assert len(mine) == len(loader)
                again = [b["__batch__"] for b in loader]
                assert again == [b["__batch__"] for b in mine], "each for begins anew"
                got += mine
                loader.close()
            got.sort(key=lambda b: b["__batch__"])
            sequence = [n for b in got for n in names(b)]
            assert len(sequence) == len(set(sequence)) == 95
            orders.add(json.dumps([[b["__batch__"], names(b)] for b in got]))
        assert len(orders) == 1


def test_repeat_false_resumes_where_it_was(shards: str) -> None:
    pipe = ShardLister(shards).read_tar().batch(4).lanes(3, repeat=False).load()
    whole = [b["__batch__"] for b in pipe.loader()]
    loader = pipe.loader(2)
    for batch in loader:
        if batch["__batch__"] == whole[9]:
            break
    state = loader.state_dict()
    loader.close()
    other = pipe.loader()
    other.load_state_dict(json.loads(json.dumps(state)))
    assert [b["__batch__"] for b in other] == whole[10:]
    assert [b["__batch__"] for b in other] == whole, "the next for begins anew"


def test_leftovers_of_buckets_come_out_short_or_are_dropped(shards: str) -> None:
    def count(drop_last: bool) -> list[int]:
        pipe = (
            ShardLister(shards)
            .read_tar()
            .bucket_by_aspect_ratio(64, 5, step=16, drop_last=drop_last)
            .lanes(2, repeat=False)
            .load()
        )
        return [len(b["__key__"]) for b in pipe.loader()]

    assert sum(count(False)) == 95
    assert min(count(False)) < 5
    assert set(count(True)) == {5}


def test_every_pass_visits_every_sample_once(shards: str) -> None:
    pipe = ShardLister(shards, seed=5).read_tar().shuffle(12).batch(1).lanes(4).load()
    loader = pipe.loader(epoch_batches=95 * 8)
    passes: dict[int, Counter[tuple[str, str]]] = {}
    for batch in loader:
        epoch = int(batch["__ref__"][0, 0])
        passes.setdefault(epoch, Counter())[names(batch)[0]] += 1
    complete = [c for c in passes.values() if sum(c.values()) == 95]
    assert len(complete) >= 4
    assert all(set(c.values()) == {1} for c in passes.values())


def test_state_at_any_time_and_right_after_load(pipe: Pipe) -> None:
    loader = pipe.loader()
    fresh = loader.state_dict()
    assert loader._stream is None, "asking for the state must start nothing"
    batches = iter(loader)
    for _ in range(7):
        next(batches)
    state = json.loads(json.dumps(loader.state_dict()))
    other = pipe.loader()
    other.load_state_dict(state)
    assert other.state_dict() == state
    other.load_state_dict(fresh)
    assert other.state_dict() == fresh
    assert next(iter(other))["__batch__"] == 0


def test_a_state_of_the_last_batch_of_an_epoch_is_before_the_epochs_end(pipe: Pipe) -> None:
    loader = pipe.loader()
    state: dict[str, Any] = {}
    for _ in loader:
        state = loader.state_dict()
    other = pipe.loader()
    other.load_state_dict(state)
    assert other.epoch == 0
    assert list(other) == [], "the epoch had come to its end"
    assert [b["__batch__"] for b in other] == list(range(23, 46))
    assert other.epoch == 2


def test_epoch_ends_at_the_first_step_by_which_its_batches_were_taken(pipe: Pipe) -> None:
    loaders = [pipe.loader(rank=r, world_size=2) for r in range(2)]
    for loader in loaders:
        for k, _ in enumerate(loader):
            if k == 4:
                break
    state = merge_states([loader.state_dict() for loader in loaders])
    other = pipe.loader()  # one rank now: 23 - 10 steps are left
    other.load_state_dict(state)
    assert len(list(other)) == 13


def test_a_rank_alone_has_only_its_lanes(shards: str) -> None:
    pipe = ShardLister(shards).read_tar().batch(2).lanes(4).load()
    loaders = [pipe.loader(rank=r, world_size=2) for r in range(2)]
    for loader in loaders:
        batches = iter(loader)
        for _ in range(3):
            next(batches)
    states = [loader.state_dict() for loader in loaders]
    assert set(states[0]["states"]) == {"0", "2"}
    assert set(states[1]["states"]) == {"1", "3"}
    with pytest.raises(ValueError, match=r"lacks lanes \[1, 3\].*gather_state.*merge_states"):
        pipe.loader().load_state_dict(states[0])
    merged = merge_states(states)
    assert merged == merge_states(states[::-1])
    pipe.loader().load_state_dict(merged)
    next(iter(loaders[0]))
    with pytest.raises(ValueError, match="different positions.*position is 6"):
        merge_states([states[1], loaders[0].state_dict()])
    with pytest.raises(ValueError, match="no states"):
        merge_states([])


def test_of_ranks_that_share_a_lane_the_latest_state_is_kept(shards: str) -> None:
    pipe = ShardLister(shards).read_tar().batch(2).load()
    loaders = [pipe.loader(rank=r, world_size=3) for r in range(3)]
    for loader in loaders:
        next(iter(loader))
    states = [loader.state_dict() for loader in loaders]
    assert [s["states"]["0"][0] for s in states] == [1, 2, 3]
    assert merge_states(states)["states"] == merge_states(states[::-1])["states"]
    assert merge_states(states)["states"]["0"] == states[2]["states"]["0"]


def test_shards_with_other_numbers_of_samples_are_refused(
    make_tar: Callable[..., str], fields_of: Callable[[int], dict[str, bytes]]
) -> None:
    samples = [(f"{i:03d}", fields_of(i)) for i in range(6)]
    url = make_tar(samples)
    state = ShardLister(url).read_tar().batch(2).load().loader().state_dict()
    make_tar(samples[:5])
    other = ShardLister(url).read_tar().batch(2).load().loader()
    with pytest.raises(ValueError, match="other numbers of samples.*'total': 6.*'total': 5"):
        other.load_state_dict(state)


def change(shards: str, **changed: Any) -> Pipe:
    a = {"seed": 1, "window": 15, "batch": 4, "lanes": 2, "by": "samples", "keep": None, **changed}
    pipe = ShardLister(a.get("urls", shards), seed=a["seed"]).read_tar()
    if a["keep"]:
        pipe = pipe.filter(a["keep"])
    return pipe.shuffle(a["window"]).batch(a["batch"]).lanes(a["lanes"], by=a["by"]).load()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"seed": 2}, "ShardLister had seed=1 when it was saved, and has seed=2"),
        ({"window": 16}, "Shuffler had buffer_size=15 .* has buffer_size=16"),
        ({"batch": 5}, "Batcher had batch_size=4"),
        ({"lanes": 3}, r"lanes\(lanes=2\).*lanes=3"),
        ({"by": "shards"}, "by='samples'.*by='shards'"),
        ({"keep": bool}, "it has Shuffler where the graph has Filter"),
    ],
)
def test_another_graph_is_refused_by_name(shards: str, changed: dict[str, Any], words: str) -> None:
    state = change(shards).loader().state_dict()
    with pytest.raises(ValueError, match=words):
        change(shards, **changed).loader(epoch_batches=5).load_state_dict(state)


def test_a_changed_shard_list_is_refused(shards: str) -> None:
    state = change(shards).loader().state_dict()
    fewer = shards.replace("{00000..00005}", "{00000..00004}")
    with pytest.raises(ValueError, match='ShardLister had shards={"count": 6.*"last": "00005.tar"'):
        change(shards, urls=fewer).loader().load_state_dict(state)


def test_where_the_shards_lie_is_no_difference(shards: str, tmp_path: Any) -> None:
    import shutil
    from pathlib import Path

    folder = Path(shards).parent
    loader = change(shards).loader()
    batches = iter(loader)
    before = [next(batches) for _ in range(6)]
    state = loader.state_dict()
    after = [next(batches) for _ in range(6)]
    shutil.copytree(folder, tmp_path / "moved")
    moved = change(shards, urls=str(tmp_path / "moved" / "*.tar")).loader()
    moved.load_state_dict(state)
    again = iter(moved)
    for batch in after:
        assert next(again)["jpg"] == batch["jpg"]
    assert before


def test_a_change_in_the_work_half_is_a_warning(shards: str) -> None:
    base = ShardLister(shards).read_tar().bucket_by_aspect_ratio(64, 4, step=16)
    state = base.decode(flip=0.5).loader().state_dict()
    with pytest.warns(UserWarning, match="work half has changed.*Decoder had flip=0.5"):
        base.decode(flip=0.25).loader().load_state_dict(state)


def test_no_state_at_all_is_refused(pipe: Pipe) -> None:
    for nonsense in ({}, {"version": 99}, []):
        with pytest.raises(ValueError, match="no loader state of version"):
            pipe.loader().load_state_dict(nonsense)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*half-filled buckets")
def test_batch_at_makes_any_batch_again(shards: str) -> None:
    pipe = (
        ShardLister(shards, seed=3)
        .read_tar()
        .shuffle(10)
        .bucket_by_aspect_ratio(64, 3, step=16)
        .lanes(2)
        .decode(crop="random", flip=0.5)
        .drop_caption(0.3)
    )
    loader = pipe.loader(2, epoch_batches=40)
    seen, middle = {}, {}
    for batch in loader:
        seen[batch["__batch__"]] = fingerprints(batch)
        if batch["__batch__"] == 20:
            middle = loader.state_dict()
    at = loader.state_dict()
    for g in (0, 7, 39):
        assert fingerprints(loader.batch_at(g)) == seen[g]
    for g in (21, 30, 5):
        assert fingerprints(pipe.loader().batch_at(g, middle)) == seen[g]
    assert loader.state_dict() == at, "looking back must not move the position"
    loader.close()
    with pytest.raises(IndexError, match="numbered from 0"):
        loader.batch_at(-1)
    ends = ShardLister(shards).read_tar().batch(50).lanes(1, repeat=False).load().loader()
    with pytest.raises(IndexError, match="lane 0 ends before it"):
        ends.batch_at(2)


def test_batch_at_is_reached_from_the_nearest_state(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from penstock.pipes import batch as batch_module

    loader = pipe.loader()
    batches = iter(loader)
    for _ in range(20):
        next(batches)
    made = 0
    real = batch_module.BatchOrder.next

    def count(self: Any) -> Any:
        nonlocal made
        made += 1
        return real(self)

    monkeypatch.setattr(batch_module.BatchOrder, "next", count)
    loader.batch_at(22)
    assert made == 2
    loader.batch_at(3)
    assert made == 2 + 2  # lane 1's batches 0 and 1, from the seed


def test_a_batch_that_raised_is_not_counted(
    make_tar: Callable[..., str], fields_of: Callable[[int], dict[str, bytes]]
) -> None:
    samples = [(f"{i:03d}", fields_of(i)) for i in range(12)]
    samples[6][1]["jpg"] = b"\xff\xd8 no jpeg"
    tar = make_tar(samples)
    for workers in (0, 2):
        pipe = ShardLister(tar, shuffle=False).read_tar().batch(2).decode(64)
        loader = pipe.loader(workers)
        got = []
        for _ in range(2):
            with pytest.raises(DataError, match="sample '006' of .*00000.tar.*field 'jpg'"):
                for batch in loader:
                    got.append(batch["__batch__"])
            assert loader.state_dict()["position"] == 3
        assert got == [0, 1, 2], "the batch is tried again, and none is skipped"
        loader.close()


def test_skip_fills_counts_and_writes_the_quarantine(
    make_tar: Callable[..., str], fields_of: Callable[[int], dict[str, bytes]], tmp_path: Any
) -> None:
    samples = [(f"{i:03d}", fields_of(i)) for i in range(12)]
    samples[6][1]["jpg"] = b"\xff\xd8 no jpeg"
    tar = make_tar(samples)
    results = []
    for workers in (0, 3):
        quarantine = tmp_path / f"{workers}.jsonl"
        loader = (
            ShardLister(tar, shuffle=False)
            .read_tar()
            .batch(4)
            .decode(64, crop="random")
            .loader(workers, on_error="skip", quarantine=quarantine)
        )
        batches = list(loader)
        loader.close()
        assert [b["__filled__"] for b in batches] == [[], [2], []]
        assert batches[1]["__key__"] == ["004", "005", "007", "007"]
        assert batches[1]["caption"][2] == batches[1]["caption"][3]
        assert not torch.equal(batches[1]["image"][2], batches[1]["image"][3]), "own draws"
        assert loader.skipped == 1
        (line,) = [json.loads(x) for x in quarantine.read_text().splitlines()]
        assert (line["batch"], line["key"]) == (1, "006")
        assert line["shard"].endswith("00000.tar")
        assert "jpg" in line["reason"]
        results.append([fingerprints(b) for b in batches])
    assert results[0] == results[1]


def test_skip_in_the_order_half_passes_over_and_only_the_yielding_consumer_reports(
    make_tar: Callable[..., str], fields_of: Callable[[int], dict[str, bytes]], tmp_path: Any
) -> None:
    samples = [(f"{i:03d}", fields_of(i)) for i in range(12)]
    for i in (3, 8):
        samples[i][1]["jpg"] = b"no image at all"
    tar = make_tar(samples)
    quarantine = tmp_path / "q.jsonl"
    keys = []
    for rank in range(2):
        loader = (
            ShardLister(tar, shuffle=False)
            .read_tar()
            .bucket_by_aspect_ratio(64, 2, sizes=[(64, 64)])
            .decode()
            .loader(
                2, rank=rank, world_size=2, on_error="skip", quarantine=quarantine, epoch_batches=5
            )
        )
        steps = list(loader)[: 3 if rank == 0 else 2]
        keys += [k for b in steps for k in b["__key__"]]
        loader.close()
    assert sorted(keys) == sorted(k for k, _ in samples if k not in ("003", "008"))
    lines = [json.loads(x) for x in quarantine.read_text().splitlines()]
    of_first_pass = [x["key"] for x in lines if x["batch"] < 5]
    assert sorted(of_first_pass) == ["003", "008"]


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 2), (2, 1), (3, 0)])
def test_what_is_passed_over_behind_the_last_batch_is_reported_once(
    make_tar: Callable[..., str],
    fields_of: Callable[[int], dict[str, bytes]],
    tmp_path: Any,
    ranks: int,
    workers: int,
) -> None:
    samples = [(f"{i:03d}", fields_of(i)) for i in range(9)]
    samples[8][1]["jpg"] = b"no image at all"
    pipe = (
        ShardLister(make_tar(samples), shuffle=False)
        .read_tar()
        .bucket_by_aspect_ratio(64, 2, sizes=[(64, 64)])
        .lanes(1, repeat=False)
        .decode()
    )
    counts = []
    for rank in range(ranks):
        loader = pipe.loader(
            workers, rank=rank, world_size=ranks, on_error="skip", quarantine=tmp_path / "q"
        )
        list(loader)
        counts.append(loader.skipped)
        loader.close()
    assert sorted(counts) == [*[0] * (ranks - 1), 1]
    assert json.loads((tmp_path / "q").read_text())["key"] == "008"


def test_the_trainers_random_generators_are_left_alone(pipe: Pipe) -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    mapped = pipe.map(lambda s: {**s, "draw": torch.rand(1) + random.random()})
    for workers in (0, 1):
        loader = mapped.loader(workers)
        list(loader)
        loader.close()
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_rank_and_world_size_come_from_the_environment(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    loader = pipe.loader()
    assert (loader.rank, loader.world_size) == (2, 3)
    assert next(iter(loader))["__batch__"] == 2
    with pytest.raises(RuntimeError, match="merge_states"):
        loader.gather_state()
    with pytest.raises(ValueError, match="give rank and world_size both"):
        pipe.loader(rank=1)
    with pytest.raises(ValueError, match="below world_size, got 3 of 3"):
        pipe.loader(rank=3, world_size=3)


def test_too_many_lanes_for_the_data_are_warned_of(shards: str) -> None:
    base = ShardLister(shards).read_tar().bucket_by_aspect_ratio(64, 4, sizes=[(64, 64)])
    with pytest.warns(UserWarning, match=r"8 lanes hold up to 32 samples.*\.lanes\(2\) would fit"):
        base.lanes(8).decode().loader()
    base.lanes(2).decode().loader()  # filterwarnings=error: no warning


def test_nonsense_is_refused(pipe: Pipe) -> None:
    with pytest.raises(ValueError, match="on_error"):
        pipe.loader(on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="epoch_batches"):
        pipe.loader(epoch_batches=0)


def test_a_damaged_shard_counts_as_empty_for_skip_and_raises_otherwise(
    make_tar: Callable[..., str], fields_of: Callable[[int], dict[str, bytes]], tmp_path: Any
) -> None:
    make_tar([(f"{i:03d}", fields_of(i)) for i in range(6)], "00000.tar")
    (tmp_path / "00001.tar").write_bytes(b"this is no tar" * 100)
    pipe = ShardLister(str(tmp_path / "*.tar")).read_tar().batch(2).load()
    with pytest.warns(UserWarning, match="passing over a shard.*00001.tar"):
        loader = pipe.loader(on_error="skip")
    assert len(loader) == 3
    assert sorted(k for b in loader for k in b["__key__"]) == [f"{i:03d}" for i in range(6)]
    with pytest.raises(DataError, match=r"00001.tar"):
        pipe.loader()
