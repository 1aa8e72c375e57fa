"""What is fetched ahead changes nothing but the time."""

import itertools
import threading
import time

import pytest

from penstock.pipes import DataError, Ref
from penstock.pipes.ahead import Ahead, Samples, fetching
from penstock.pipes.order import Batch
from penstock.pipes.sample import KEY, URL, Stored
from penstock.pipes.work import Workshop


class Far(Stored):
    """A field whose fetch does what a test says."""

    def __init__(self, do=lambda: None, data=b"x"):
        self.do = do
        self.data = data
        self.fetched = 0
        self.reads = 0

    far = True

    def fetch(self):
        self.fetched += 1
        self.do()

    def read(self):
        self.reads += 1
        return self.data


def fails(error):
    def do():
        raise error

    return do


def test_many_are_fetched_at_once():
    meet = threading.Barrier(4)
    fields = [Ahead(Far(lambda: meet.wait(20))) for _ in range(8)]
    with fetching(fields, 4):
        assert [field.read() for field in fields] == [b"x"] * 8
    assert [field.field.fetched for field in fields] == [1] * 8


def test_who_reads_waits_for_who_fetches():
    go = threading.Event()
    field = Ahead(Far(lambda: go.wait(20)))
    with fetching([field], 1):
        while not field.field.fetched:
            time.sleep(0.001)
        threading.Timer(0.1, go.set).start()
        assert field.read() == b"x"
        assert go.is_set()
    assert field.field.fetched == 1


def test_what_no_thread_has_begun_is_fetched_by_who_reads_it():
    go, first, second = threading.Event(), Far(), Far()
    first.do = lambda: go.wait(20)
    fields = [Ahead(first), Ahead(second)]
    with fetching(fields, 1):
        while not first.fetched:
            time.sleep(0.001)
        assert fields[1].read() == b"x"
        go.set()
        fields[0].read()
    assert (first.fetched, second.fetched) == (1, 1)


@pytest.mark.parametrize("error", [DataError("gone"), OSError("no network")])
def test_what_went_wrong_is_raised_with_every_read_and_not_tried_again(error):
    field = Ahead(Far(fails(error)))
    with fetching([field]):
        for _ in range(3):
            with pytest.raises(type(error), match=str(error)):
                field.read()
    assert (field.field.fetched, field.field.reads) == (1, 0)


def test_after_the_block_nothing_is_begun():
    go = threading.Event()
    fields = [Ahead(Far(lambda: go.wait(20))) for _ in range(5)]
    with pytest.raises(KeyError), fetching(fields, 1):
        while not fields[0].field.fetched:
            time.sleep(0.001)
        raise KeyError
    threads = [t for t in threading.enumerate() if t.name == "penstock-files"]
    assert all(thread.daemon for thread in threads)
    go.set()
    for thread in threads:
        thread.join(20)
    assert [field.field.fetched for field in fields] == [1, 0, 0, 0, 0]


def test_samples_are_made_once_and_their_far_fields_found():
    made = []

    def resolve(ref):
        made.append(ref)
        if ref.sample == 2:
            raise DataError("bad row")
        return {"image": Far(), "txt": b"text", "n": ref.sample}

    refs = [Ref(0, 0, i) for i in range(3)]
    samples = Samples(refs, resolve)
    assert len(samples.far) == 2
    for ref in refs[:2]:
        one, other = samples.sample(ref), samples.sample(ref)
        assert one == other
        assert one is not other  # who works on one does not change the next
        assert (one["txt"], one["n"]) == (b"text", ref.sample)
    assert made == refs
    with pytest.raises(DataError, match="bad row"):
        samples.sample(refs[2])


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("bad", list(itertools.product([None, "fetch", "row"], repeat=3)))
def test_a_batch_and_its_errors_are_what_they_are_without(bad, on_error):
    """Of near fields, of far ones, and of far ones that are fetched one by one."""
    from penstock.pipes import ManifestReader
    from penstock.pipes.load import FieldLoader

    refs = [Ref(0, 0, i) for i in range(3)]

    def outcome(far):
        def resolve(ref):
            if bad[ref.sample] == "row":
                raise DataError(f"row {ref.sample}")
            field = Far(data=b"%d" % ref.sample)
            error = DataError(f"file {ref.sample}")
            if bad[ref.sample]:
                field.do = fails(error)
                if not far:
                    field.read = fails(error)
            field.far = far
            return {KEY: str(ref.sample), URL: "u", "image": field}

        shop = Workshop([FieldLoader(ManifestReader.__new__(ManifestReader))], 0, on_error, False)
        try:
            return shop.run(7, Batch(refs), resolve, lambda ref: ("u", str(ref.sample)))
        except DataError as error:
            return str(error)

    near, far = outcome(False), outcome(True)
    assert repr(near) == repr(far)
    assert isinstance(near, str) == (all(bad) or (on_error == "raise" and any(bad)))
