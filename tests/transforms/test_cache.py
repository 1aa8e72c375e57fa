"""What the caches have in common: each entry made once, and told about."""

import json
import pickle
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from penstock.transforms.cache import Cache
from penstock.transforms.entry_rows import pack_rows


class Squares:
    """Looks numbers up, and squares those that are missing."""

    def __init__(self, store: Any, weights: str = "w1", **how: Any) -> None:
        encoder = SimpleNamespace(about={"weights": weights, "deep": {"keep": "mean"}})
        self.cache = Cache("squares", store, encoder, **how)
        self.calls: list[list[int]] = []

    def look(self, numbers: list[int], more: int = 0) -> tuple[Any, list[dict[str, Any]]]:
        found, records = [], []
        for x in numbers:
            inputs = {"x": x, "more": more}
            name = self.cache.name_of(inputs)
            hit, entry = self.cache.look(name)
            about = {"ingredients": self.cache.ingredients(inputs), "x": x}
            records.append(self.cache.record(name, f"number {x}", hit, about))
            found.append(entry)
        return pack_rows(found), records

    def fill(self, looked: Any, chunk: int | None = None) -> Any:
        found, records = looked

        def encode(rows: list[int]) -> list[dict[str, torch.Tensor]]:
            self.calls.append(rows)
            whole = torch.tensor([[records[row]["about"]["x"] ** 2] * 2 for row in rows])
            return [{"e": row} for row in whole]

        return self.cache.whole(found, records, encode, None, chunk)["e"][:, 0].tolist()


def test_what_is_missing_is_encoded_once_and_written(store: Any) -> None:
    one = Squares(store)
    assert one.fill(one.look([3, 4, 3, 5, 3]), chunk=2) == [9, 16, 9, 25, 9]
    assert one.calls == [[0, 1], [3]]
    assert (one.cache.misses, one.cache.hits) == (3, 2)
    assert all(e["e"].untyped_storage().nbytes() == 16 for e in store.entries.values())
    assert one.fill(one.look([5, 6])) == [25, 36]
    assert one.calls[2:] == [[1]]
    looked = one.look([3, 4])
    assert isinstance(looked[0], dict)
    assert [r["about"] for r in looked[1]] == [None, None]
    assert one.fill(looked) == [9, 16]
    assert one.cache.seconds > 0


def test_what_has_come_meanwhile_is_not_encoded(store: Any) -> None:
    one, other = Squares(store), Squares(store)
    looked = one.look([3, 4])
    assert other.fill(other.look([4])) == [16]
    assert one.fill(looked) == [9, 16]
    assert one.calls == [[0]]
    # A worker found it for a later row of the same batch.
    (found, records), (late, hit) = one.look([7]), (None, None)
    other.fill(other.look([7]))
    late, hit = one.look([7])
    assert one.fill(([None, {"e": late["e"][0]}], [*records, *hit])) == [49, 49]
    assert one.calls == [[0]]
    assert found == [None]


def test_names_hold_all_ingredients(store: Any) -> None:
    one = Squares(store).cache
    names = {
        one.name_of({"x": 1}),
        one.name_of({"x": 2}),
        one.name_of({"x": 1, "y": None}),
        Squares(store, "w2").cache.name_of({"x": 1}),
        Cache("cubes", store, SimpleNamespace(about=one.about)).name_of({"x": 1}),
    }
    assert len(names) == 5
    assert Squares(store).cache.name_of({"x": 1}) in names


def test_a_pickle_leaves_the_encoder_and_what_is_held(store: Any) -> None:
    one = Squares(store, hold="memory", limit="1kB")
    one.cache.encoder = lambda: None  # cannot be pickled
    one.cache.encoder.about = one.cache.about  # type: ignore[attr-defined]
    one.fill(one.look([3]))
    assert len(one.cache.held) == 1
    other = pickle.loads(pickle.dumps(one.cache))
    assert other.encoder is None
    assert len(other.held) == 0
    assert (other.held.hold, other.held.limit) == ("memory", 1000)
    assert other.name_of({"x": 1}) == one.cache.name_of({"x": 1})


@pytest.mark.parametrize("hold", ["memory", "device"])
def test_held_entries_are_read_once(store: Any, hold: Any) -> None:
    Squares(store).fill(Squares(store).look([1, 2, 3]))
    one = Squares(store, hold=hold)
    store.reads = 0
    for _ in range(3):
        found, records = one.look([1, 2, 3])
        assert found == [None] * 3
        assert all(record["hit"] for record in records)
        assert one.fill((found, records)) == [1, 4, 9]
    assert store.reads == 3
    assert one.calls == []
    assert one.cache.held.size == 3 * 16


def test_over_the_limit_workers_send_tensors(store: Any) -> None:
    Squares(store).fill(Squares(store).look([1, 2, 3]))
    one = Squares(store, hold="memory", limit=40)
    looked = one.look([1, 2, 3])
    assert isinstance(looked[0], dict)
    with pytest.warns(UserWarning, match="more than limit=40 bytes: 2 of them are held"):
        assert one.fill(looked) == [1, 4, 9]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert one.fill(one.look([3, 2, 1])) == [9, 4, 1]


def test_a_hit_that_is_gone_is_an_error_unless_another_look_finds_it(store: Any) -> None:
    one = Squares(store, hold="memory")
    one.fill(one.look([1]))
    other = Squares(store, hold="memory")
    looked = other.look([1])
    entries, store.entries = store.entries, {}
    with pytest.raises(ValueError, match="the cache was pruned under the run"):
        other.fill(looked)

    def refresh() -> None:
        store.entries = entries

    store.refresh = refresh
    assert other.fill(looked) == [1]


def test_without_an_encoder_the_store_tells_whose_entries_it_has(store: Any) -> None:
    with pytest.raises(ValueError, match="tells of no encoder for 'squares'"):
        Cache("squares", store, None)
    one = Squares(store)
    one.fill(one.look([1]))
    bare = Squares(store)
    bare.cache = Cache("squares", store, None)
    assert bare.cache.digest == one.cache.digest
    assert bare.fill(bare.look([1])) == [1]
    with pytest.raises(ValueError, match="number 2 is not in the cache, .*not seen before"):
        bare.fill(bare.look([2]))
    other = Squares(store, "w2")
    other.fill(other.look([1]))
    assert [told["weights"] for told in store.told["squares"]] == ["w1", "w2"]
    with pytest.raises(ValueError, match="has entries of 2 encoders"):
        Cache("squares", store, None)
    with pytest.raises(ValueError, match="tells of no encoder for 'cubes'"):
        Cache("cubes", store, None)


def test_it_explains_what_is_missing(store: Any) -> None:
    one, other = Squares(store), Squares(store, "w2")
    one.fill(one.look([1]))
    one.fill(one.look([1], more=5))

    def said(squares: Squares, **how: Any) -> str:
        return squares.cache.explain_record(squares.look([1], **how)[1][0])

    assert said(one) == "number 1: cached"
    assert said(one, more=4) == "number 1: more was 5, and is 4"  # of two as near, the newest
    assert said(other, more=5) == "number 1: encoder.weights was w1, and is w2"
    looked = one.look([2])
    assert one.cache.explain_record(looked[1][0]) == "number 2: not seen before"
    one.fill(looked)
    assert one.cache.explain_record(looked[1][0]) == "number 2: cached"
    assert json.dumps(looked[1])


def test_wrong_arguments(store: Any) -> None:
    for how, words in (
        ({"hold": "disk"}, "hold must be"),
        ({"limit": "many"}, "limit is bytes, or such as"),
        ({"limit": None}, "limit is bytes, or such as"),
    ):
        with pytest.raises(ValueError, match=words):
            Squares(store, **how)
