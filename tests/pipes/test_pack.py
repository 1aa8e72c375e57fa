"""What waits in buckets comes back from its packed text, or the text is refused."""

import base64
import json
import string
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.pipes.pack import pack_refs, unpack_refs


class Prints:
    """Stands for `Sources`: shards with fingerprints, but for those of a manifest from ``rows``."""

    prints = True

    def __init__(self, changed=(), rows=1 << 40):
        self.changed = changed
        self.rows = rows

    def printed(self, shards):
        return shards < self.rows

    def fingerprint(self, shard):
        return (shard * 0x9E3779B97F4A7C15 + (shard in self.changed)) & ((1 << 64) - 1)

    def url(self, shard):
        return f"{shard:05d}.tar"


REFS = st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1), st.integers(0, 2**40))
NEAR = st.tuples(st.integers(3, 5), st.integers(90, 99), st.integers(0, 9999))
BINS = st.lists(st.lists(REFS | NEAR, max_size=8), min_size=1, max_size=9)


def flat(bins):
    return [array("q", [number for ref in refs for number in ref]) for refs in bins]


@settings(max_examples=60)
@given(bins=BINS)
def test_any_refs_come_back(bins):
    text = pack_refs(flat(bins), Prints())
    assert json.loads(json.dumps(text)) == text
    assert unpack_refs(text, len(bins), Prints()) == flat(bins)


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_numbers_at_the_ends_of_each_width_come_back(bits):
    top = 1 << bits
    for number in (top - 1, top, 2 * top - 1):
        bins = flat([[(0, 1, number), (5, min(number, 2**31 - 1), 0)]])
        assert unpack_refs(pack_refs(bins, Prints()), 1, Prints()) == bins


def nearly_full(make):
    """Return 20 buckets, each one short of 32 refs, that ``make(number)`` gives."""
    return flat([[make(31 * k + i) for i in range(31)] for k in range(20)])


# Of two passes; the shards of a thousand million rows, and of a hundred thousand tars.
HELD = {
    "few tars": nearly_full(lambda i: (7 + i % 2, i % 10 * 9973, i * 7919 % 10_000)),
    "many tars": nearly_full(lambda i: (7 + i % 2, i % 100 * 997, i * 7919 % 10_000)),
    "rows": nearly_full(lambda i: (7 + i % 2, i * 7919 * 7919 % 1_000_000, 0)),
    "very many rows": nearly_full(lambda i: (7 + i % 2, i * 7919 * 7919 % 10**9, 0)),
}


@pytest.mark.parametrize("name", list(HELD))
def test_twenty_buckets_of_32_take_less_than_4_kb(name):
    sources = Prints(rows=0 if "rows" in name else 1 << 40)
    text = pack_refs(HELD[name], sources)
    assert len(text) < 4000
    assert unpack_refs(text, 20, sources) == HELD[name]


def test_rows_of_a_manifest_need_no_fingerprints():
    bins = flat([[(0, 5, 7), (0, 1000, 0), (1, 2000, 0), (0, 6, 9)]])
    text = pack_refs(bins, Prints(rows=1000))
    assert unpack_refs(text, 1, Prints({1000, 2000}, rows=1000)) == bins
    with pytest.raises(ValueError, match=r"shard 00006.tar has changed"):
        unpack_refs(text, 1, Prints({6}, rows=1000))
    bare = Prints(rows=0)
    bare.prints = False
    assert unpack_refs(pack_refs(bins, bare), 1, bare) == bins
    assert len(pack_refs(bins, bare)) < len(text)


@settings(max_examples=40)
@given(bins=BINS.filter(any), data=st.data())
def test_a_shard_that_has_changed_is_refused_by_name(bins, data):
    shards = sorted({shard for refs in bins for _, shard, _ in refs})
    changed = data.draw(st.sampled_from(shards))
    text = pack_refs(flat(bins), Prints())
    with pytest.raises(ValueError, match=f"shard {changed:05d}.tar has changed"):
        unpack_refs(text, len(bins), Prints({changed}))
    assert unpack_refs(text, len(bins), Prints({max(shards) + 1})) == flat(bins)


def same_bytes(text, other):
    try:
        return base64.b64decode(text, validate=True) == base64.b64decode(other)
    except ValueError:
        return False


@settings(max_examples=50)
@given(bins=BINS, data=st.data())
def test_damaged_text_is_refused(bins, data):
    text = pack_refs(flat(bins), Prints())
    at = data.draw(st.integers(0, len(text) - 1))
    alphabet = string.ascii_letters + string.digits + "+/=é\n "
    other = data.draw(st.sampled_from(sorted(set(alphabet + 'é\n" ') - {text[at]})))
    rest = text[at + 1 :]
    for bad in (text[:at], text[:at] + other + rest, text + other, text[:at] + rest):
        if same_bytes(bad, text):
            continue  # the last letters have bits to spare
        with pytest.raises(ValueError, match="the state of a lane is damaged"):
            unpack_refs(bad, len(bins), Prints())


@given(st.binary(max_size=80))
def test_any_bytes_are_refused(data):
    with pytest.raises(ValueError, match="the state of a lane is damaged"):
        unpack_refs(base64.b64encode(data).decode(), 3, Prints())


def test_another_number_of_buckets_is_refused():
    text = pack_refs(flat([[(0, 1, 2)], [], [(0, 1, 3)]]), Prints())
    for count in (2, 4):
        with pytest.raises(ValueError, match="the state of a lane is damaged"):
            unpack_refs(text, count, Prints())
