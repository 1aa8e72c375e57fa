"""Fields are decoded by extension, nothing is unpickled, the caption is where it is said to be."""

import io
import json
import pickle
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.pipes import DataError, Draws, Extent, Ref
from penstock.pipes.decode_fields import CaptionField, decode_field
from penstock.pipes.sample import Typed

DRAWS = Draws(0, Ref(0, 0, 0))


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


@pytest.fixture
def extent(tmp_path):
    """Return a function from bytes to their extent in some file."""
    path = tmp_path / "data"

    def put(data):
        with open(path, "ab") as file:
            return Extent(str(path), file.tell(), file.write(data))

    return put


@pytest.mark.parametrize(
    ("name", "data", "value"),
    [
        ("json", b'{"a": [1, "\xc3\xa9"]}', {"a": [1, "é"]}),
        ("meta.json", b"[1]", [1]),
        ("JSON", b"null", None),
        ("cls", b"7\n", 7),
        ("index", b"-3", -3),
        ("txt", "\ufeffé\n".encode(), "é\n"),
        ("text", b"x", "x"),
        ("bin", b"\xff\x00", b"\xff\x00"),
        ("json.gz", b"\x1f\x8b", b"\x1f\x8b"),
    ],
)
def test_fields_are_decoded_by_their_extension(name, data, value, extent):
    assert decode_field(name, extent(data)) == value


def test_arrays_are_what_was_saved(extent):
    for array in (np.arange(6, dtype=np.float16).reshape(2, 3), np.array(3), np.zeros((0, 4))):
        found = decode_field("emb.npy", extent(npy(array)))
        assert found.dtype == array.dtype
        assert found.shape == array.shape
        assert (found == array).all()


@pytest.mark.parametrize("name", ["img_emb", "text_emb", "IMG_EMB", "a.img_emb"])
def test_embeddings_by_their_usual_names_are_arrays(name, extent):
    assert decode_field(name, extent(npy(np.arange(3)))).tolist() == [0, 1, 2]
    with pytest.raises(DataError, match=f"'{name}' is no {name.rpartition('.')[2].lower()}: "):
        decode_field(name, extent(b"x"))


@pytest.mark.parametrize("name", ["pt", "pth", "latent.PT"])
def test_what_torch_save_writes_is_refused(name, extent):
    with pytest.raises(
        DataError, match=f"^field '{name}' is what torch.save writes, a pickle: .*se"
    ):
        decode_field(name, extent(b"x"))


class Own(Typed):
    def read(self):
        raise AssertionError

    def value(self):
        return 7


def test_a_typed_field_gives_its_own_value():
    assert decode_field("pt", Own()) == 7


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("it was unpickled",)


def test_nothing_is_ever_unpickled(extent):
    data = npy(np.array([Bomb()], object), allow_pickle=True)
    with pytest.raises(DataError, match="'npy' is no npy: Object arrays cannot be loaded"):
        decode_field("npy", extent(data))
    with pytest.raises(DataError, match="'npy' is no npy"):
        decode_field("npy", extent(pickle.dumps(Bomb())))


def test_an_archive_is_no_array(extent):
    file = io.BytesIO()
    np.savez(file, a=np.ones(2))
    with pytest.raises(DataError, match=r"'x.npy' is no npy"):
        decode_field("x.npy", extent(file.getvalue()))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("json", b"{"),
        ("json", b""),
        ("json", b"\xff"),
        ("json", b"[" * 100_000),
        ("cls", b"seven"),
        ("cls", b""),
        ("npy", b""),
        ("npy", npy(np.ones(3))[:-1]),
        ("npy", b"\x93NUMPY\x09\x00"),
        # A header that claims 8 TB.
        ("npy", npy(np.ones(3)).replace(b"(3,), }           ", b"(1000000000000,), }")),
        ("npy", npy(np.ones(3)).replace(b"'<f8'", b"'<q('")),
        ("npy", npy(np.ones(3)).replace(b"{'descr'", b"(((((((('")),
        ("txt", b"gr\xfcn"),
    ],
)
def test_bytes_that_are_not_what_the_extension_says_are_bad_data(name, data, extent):
    with pytest.raises(DataError, match=f"^field '{name}' is no {name}: "):
        decode_field(name, extent(data))


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 127), value=st.integers(0, 255), cut=st.integers(0, 150))
def test_any_damage_to_an_array_is_bad_data_or_an_array(at, value, cut, tmp_path_factory):
    data = bytearray(npy(np.arange(4)))
    data[at] = value
    path = tmp_path_factory.getbasetemp() / "npy"
    path.write_bytes(data)
    for size in (len(data), min(cut, len(data))):
        with suppress(DataError):
            assert isinstance(decode_field("npy", Extent(str(path), 0, size)), np.ndarray)


def test_a_file_that_was_cut_names_the_field(extent):
    whole = extent(b"7")
    with pytest.raises(DataError, match=r"^field 'cls': .*truncated"):
        decode_field("cls", whole._replace(size=20))


def caption(sample, name=None, pick="first", lines=False, default=None):
    return CaptionField(name, pick, lines, default).read(sample, DRAWS)


def test_the_caption_is_the_first_of_the_usual_fields(extent):
    sample = {"text": extent(b"t"), "txt": extent(b"x")}
    assert caption(sample) == ("txt", "x")
    assert caption({"caption": extent(b" c "), **sample}) == ("caption", "c")
    assert caption({"jpg": extent(b"")}) == (None, None)
    assert caption({"jpg": extent(b"")}, default="") == (None, "")
    assert caption(sample, "text") == ("text", "t")


def test_a_caption_of_a_json_field(extent):
    record = {"caption": "a dog", "a.b": "dotted", "many": ["", "one", "two"], "none": None, "n": 3}
    sample = {"json": extent(json.dumps(record).encode())}
    assert caption(sample, "json.caption") == (None, "a dog")
    assert caption(sample, "json.a.b") == (None, "dotted")
    assert caption(sample, "json.many") == (None, "one")
    assert caption(sample, "json.none") == (None, "")
    assert caption({"meta.json": sample["json"]}, "meta.json.caption") == (None, "a dog")
    assert (
        caption({"json.caption": extent(b"own field"), **sample}, "json.caption")[1] == "own field"
    )
    for name, message in (
        ("json.nope", r"^field 'json': JSON has no field 'nope'; it has \['a.b', 'caption'"),
        ("json.n", "^field 'json': caption must be text, got int 3"),
        ("json", r"^field 'json': caption is an object with fields \['a.b', 'caption'.*name one"),
        ("x.y", r"has no caption 'x.y'; its fields are: json"),
    ):
        with pytest.raises(DataError, match=message):
            caption(sample, name)


def test_a_json_field_may_be_the_caption_or_a_list_of_them(extent):
    assert caption({"json": extent(b'"a dog"')}, "json") == ("json", "a dog")
    assert caption({"json": extent(b'["", "one", "two"]')}, "json") == ("json", "one")
    for data in (b"3", b"null"):
        with pytest.raises(DataError, match=r"^field 'json': caption must be text, got"):
            caption({"json": extent(data)}, "json")
    with pytest.raises(DataError, match=r"^field 'json' is no json: "):
        caption({"json": extent(b"{")}, "json")
    assert caption({"__key__": "a_red_ball"}, "__key__") == ("__key__", "a_red_ball")


def test_the_default_stands_for_a_caption_that_is_not_there(extent):
    sample = {"json": extent(b'{"none": null, "blank": " "}'), "txt": extent(b" \n")}
    for name in ("json.nope", "json.none", "json.blank", "txt", "no", "no.no", None):
        assert caption(sample, name, default="DEFAULT")[1] == "DEFAULT"
    # Not for data that is bad.
    bad = {"json": extent(b"{"), "txt": extent(b"\xff")}
    for name in ("json.x", "txt"):
        with pytest.raises(DataError, match=r"^field '"):
            caption(bad, name, default="DEFAULT")


def test_several_captions(extent):
    sample = {"txt": extent(b"one\n\ntwo\nthree")}
    assert caption(sample) == ("txt", "one\n\ntwo\nthree")
    assert caption(sample, lines=True) == ("txt", "one")
    draws = [Draws(1, Ref(0, 0, i)) for i in range(300)]
    field = CaptionField(None, "random", True, None)
    found = [field.read(sample, d)[1] for d in draws]
    assert {found.count(c) > 75 for c in ("one", "two", "three")} == {True}
    assert found == [field.read(sample, d)[1] for d in draws]
    weighted = CaptionField(None, [1, 5, 0, 3], True, None)
    found = [weighted.read(sample, d)[1] for d in draws]
    assert set(found) == {"one", "three"}
    assert 180 < found.count("three") < 270
