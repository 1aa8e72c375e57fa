"""Refs and extents are small plain tuples."""

import json
import pickle

from penstock.pipes import Extent, Ref


def test_a_ref_is_three_integers():
    ref = Ref(1, 2, 3)
    assert (ref.epoch, ref.shard, ref.sample) == ref == (1, 2, 3)
    assert Ref(*json.loads(json.dumps(ref))) == ref
    assert pickle.loads(pickle.dumps(ref)) == ref
    assert sorted([Ref(1, 0, 0), Ref(0, 9, 9)])[0] == Ref(0, 9, 9)


def test_an_extent_reads_itself(tmp_path):
    (tmp_path / "f").write_bytes(b"abcdef")
    extent = Extent(str(tmp_path / "f"), 2, 3)
    assert extent.read() == b"cde"
    assert pickle.loads(pickle.dumps(extent)).read() == b"cde"
