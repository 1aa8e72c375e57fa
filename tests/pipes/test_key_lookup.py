import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.pipes import DataError
from penstock.pipes import key_lookup as module
from penstock.pipes.key_lookup import KeyLookup
from penstock.pipes.shard_index import ShardIndex


def index(keys):
    return ShardIndex.build([(key, [("txt", 0, 1)]) for key in keys])


@given(keys=st.lists(st.text("ab1é", max_size=3), unique=True), near=st.integers(0, 9))
def test_each_key_is_found_where_it_is_and_no_other(keys, near):
    lookup = KeyLookup(index(keys), "0.tar")
    for i, key in enumerate(keys):
        assert lookup.find(key, near) == i
        assert lookup.find(key + "x", near) is None
    assert lookup.find("x", near) is None


@given(
    keys=st.lists(st.text("ab", max_size=3), min_size=1, unique=True),
    twin=st.integers(0, 9),
    at=st.integers(0, 9),
)
def test_a_key_that_comes_twice_is_named(keys, twin, at):
    again = [*keys]
    again.insert(at, keys[twin % len(keys)])
    with pytest.raises(
        DataError, match=rf"^0.tar has the key '{keys[twin % len(keys)]}' twice, in"
    ):
        KeyLookup(index(again), "0.tar")


def test_keys_of_one_hash_are_told_apart(monkeypatch):
    monkeypatch.setattr(module, "hash", lambda key: len(key), raising=False)
    lookup = KeyLookup(index(["b", "a", "c", "dd"]), "0.tar")
    assert [lookup.find(key, 9) for key in ("a", "b", "c", "d", "dd", "")] == [
        1,
        0,
        2,
        None,
        3,
        None,
    ]
    with pytest.raises(DataError, match="the key 'a' twice, in samples 0 and 3"):
        KeyLookup(index(["a", "b", "c", "a"]), "0.tar")
