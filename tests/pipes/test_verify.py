"""verify_resume, batch_at, gather_state and merge_states fail where exactness is broken."""

import json
import multiprocessing
import random
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penstock.pipes import ElasticDataLoader, Pipe, ShardLister, merge_states, verify_resume
from penstock.pipes.bucket import BucketOrder
from penstock.pipes.draws import Draws
from penstock.pipes.pack import pack_refs
from penstock.pipes.shuffle import ShuffleOrder
from penstock.pipes.slot import Slot
from penstock.pipes.verify import ResumeError, fingerprints
from penstock.pipes.work import WorkPipe

LEGS = ((0, 1), (1, 1), (0, 3), (0, 2))


def graph(shards: str, lanes: int = 2) -> Pipe:
    return (
        ShardLister(shards, seed=4)
        .read_tar()
        .shuffle(20)
        .bucket_by_aspect_ratio(64, 3, step=16)
        .lanes(lanes)
        .decode(crop="random", flip=0.5)
    )


def verify(pipe: Pipe, **options: Any) -> Any:
    return verify_resume(
        lambda workers, rank, ranks: pipe.loader(
            workers, rank=rank, world_size=ranks, epoch_batches=11
        ),
        **{"legs": LEGS, "steps": 5, **options},
    )


pytestmark = pytest.mark.filterwarnings("ignore:.*half-filled buckets")


def test_an_exact_graph_is_proved(shards: str) -> None:
    report = verify(graph(shards).drop_caption(0.3).map(lambda s: {**s, "draw": torch.rand(2)}))
    assert report.batches == sum(ranks * steps for _, ranks, _, steps in report.legs)
    assert len(report.legs) == len(LEGS) + 1
    assert f"{report.batches} global batches are bit-identical" in str(report)


def test_more_workers_and_ranks(shards: str) -> None:
    verify(graph(shards, 3).shuffle_caption(keep=1), legs=((2, 1), (1, 2), (3, 1)), steps=3)


class Unseeded(WorkPipe):
    """A step that draws from the global generator."""

    def __init__(self, source: Pipe) -> None:
        self.source: Pipe = source

    def work(self, sample: dict[str, Any], draws: Draws, slot: Slot) -> dict[str, Any]:
        return {**sample, "noise": random.random()}


def test_a_draw_from_a_global_generator_is_found(shards: str) -> None:
    with pytest.raises(ResumeError, match=r"batch \d+ with 0 workers.*: noise differ"):
        verify(Unseeded(graph(shards)))


def test_a_function_of_earlier_calls_is_found(shards: str) -> None:
    calls = 0

    def count(sample: dict[str, Any]) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        return {**sample, "calls": calls}

    with pytest.raises(ResumeError, match="calls differ"):
        verify(graph(shards).map(count))


def test_a_ref_left_out_of_the_state_is_found(shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(self: BucketOrder) -> Any:
        bins = [array("q", held) for held in self.bins]
        del max(bins, key=len)[-3:]
        return [self.source.state(), pack_refs(bins, self.lane.sources)]

    monkeypatch.setattr(BucketOrder, "state", forgetful)
    with pytest.raises(ResumeError, match="is not the uninterrupted run's|was due"):
        verify(graph(shards, 1), legs=((0, 1), (0, 3), (0, 2), (0, 3)), steps=9)


def test_a_window_that_forgets_what_left_is_found(
    shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ShuffleOrder.state
    monkeypatch.setattr(ShuffleOrder, "state", lambda self: [*real(self)[:3], -1, -1])
    with pytest.raises(ResumeError, match="is not the uninterrupted run's"):
        verify(graph(shards))


def test_a_state_that_does_not_come_back_is_found(
    shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ElasticDataLoader.load_state_dict

    def wrong(self: ElasticDataLoader, state: Any) -> None:
        real(self, state)
        self.position += 1

    monkeypatch.setattr(ElasticDataLoader, "load_state_dict", wrong)
    with pytest.raises(ResumeError, match=r"right after load_state_dict\(s\) is not s"):
        verify(graph(shards))


def test_a_graph_that_ends_too_early_is_an_error(shards: str) -> None:
    pipe = ShardLister(shards).read_tar().batch(40).lanes(1, repeat=False).load()
    with pytest.raises(ValueError, match="ended .* batches early"):
        verify_resume(lambda w, r, n: pipe.loader(w, rank=r, world_size=n), legs=LEGS, steps=5)


def test_batch_at_differs_where_a_draw_is_not_the_refs(shards: str) -> None:
    loader = Unseeded(graph(shards)).loader(epoch_batches=9)
    seen = [fingerprints(b) for b in loader]
    assert fingerprints(loader.batch_at(4)) != seen[4]


def test_batch_at_from_a_forgetful_state_is_another_batch(
    shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = graph(shards, 1).loader(epoch_batches=30)
    seen = [fingerprints(b) for b in loader]
    state = loader.state_dict()
    real = BucketOrder.load

    def forgetful(self: BucketOrder, packed: Any) -> None:
        real(self, packed)
        for held in self.bins:
            held[:] = held[:-3]

    monkeypatch.setattr(BucketOrder, "load", forgetful)
    other = graph(shards, 1).loader(epoch_batches=40)
    other.load_state_dict(state)
    assert [fingerprints(b) for b in other][:8] != seen[:8]
    monkeypatch.undo()
    longer = graph(shards, 1).loader(epoch_batches=40)
    whole = [fingerprints(b) for b in longer]
    assert whole[:30] == seen
    assert fingerprints(graph(shards, 1).loader().batch_at(35, state)) == whole[35]
    monkeypatch.setattr(BucketOrder, "load", forgetful)
    assert fingerprints(graph(shards, 1).loader().batch_at(35, state)) != whole[35]


def _rank(shards: str, folder: Path, rank: int) -> None:
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    loader = graph(shards, 4).loader()
    for _, _ in zip(range(3), loader, strict=False):
        pass
    gathered, own = loader.gather_state(), loader.state_dict()
    (folder / f"{rank}.json").write_text(json.dumps([gathered, own]))
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_gather_state_has_every_ranks_lanes(shards: str, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=_rank, args=(shards, tmp_path, rank)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    (zero, own0), (one, own1) = (
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)
    )
    assert zero == one == merge_states([own0, own1])
    assert set(own0["states"]) == {"0", "2"}
    assert set(zero["states"]) == {"0", "1", "2", "3"}
    whole = [fingerprints(b) for b in graph(shards, 4).loader(epoch_batches=12)]
    loader = graph(shards, 4).loader(epoch_batches=12)
    loader.load_state_dict(zero)
    assert [fingerprints(b) for b in loader] == whole[6:]
    # Broken on purpose: two lanes' states swapped.
    broken = json.loads(json.dumps(zero))
    states = broken["states"]
    states["0"][1], states["1"][1] = states["1"][1], states["0"][1]
    loader = graph(shards, 4).loader(epoch_batches=12)
    loader.load_state_dict(broken)
    assert [fingerprints(b) for b in loader] != whole[6:]


def test_fingerprints_see_every_byte_type_and_shape() -> None:
    base: dict[str, Any] = {
        "a": torch.zeros(2, 3),
        "b": ["x", "y"],
        "c": np.arange(3),
        "d": {"k": 1},
        "e": b"z",
    }
    same = {k: (v.clone() if isinstance(v, torch.Tensor) else v) for k, v in base.items()}
    assert fingerprints(base) == fingerprints(same)
    for name, other in (
        ("a", torch.zeros(3, 2)),
        ("a", torch.zeros(2, 3, dtype=torch.float64)),
        ("b", ["xy", ""]),
        ("c", np.arange(3, dtype=np.int32)),
        ("d", {"k": 1.0}),
        ("e", "z"),
    ):
        assert fingerprints({**base, name: other}) != fingerprints(base)


def test_progress_is_shown_on_request(shards: str, capfd: pytest.CaptureFixture[str]) -> None:
    verify(graph(shards), legs=((0, 1),), steps=1, progress=True)
    assert "verifying resume" in capfd.readouterr().err
