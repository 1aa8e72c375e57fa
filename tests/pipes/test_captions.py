from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.pipes.captions import (
    add_affixes,
    caption_candidates,
    check_pick,
    choose_caption,
    decode_text,
    parse_json,
    pick_caption,
    read_json_field,
)
from penstock.pipes.draws import Draws
from penstock.pipes.errors import DataError
from penstock.pipes.sample import Ref

DRAWS = st.builds(lambda seed, i: Draws(seed, Ref(0, 1, i)), st.integers(0, 99), st.integers(0, 99))
WORDS = st.lists(st.text("ab. é川", max_size=5), max_size=9)
MANY = [Draws(7, Ref(i % 3, i % 11, i)) for i in range(4000)]


@pytest.fixture
def draws():
    return Draws(0, Ref(0, 0, 0))


# Text


def test_text_is_utf8_without_a_byte_order_mark():
    assert decode_text("\ufeffein Fluß, 川".encode()) == "ein Fluß, 川"
    assert decode_text(memoryview(b"a")) == "a"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("grün".encode("latin-1"), "byte 0xfc at offset 2.*another encoding.*iconv"),
        ("a cat".encode("utf-16"), "byte 0xff at offset 0.*UTF-16"),
        (b"ab\xe5\xb7", "offset 2"),
    ],
)
def test_other_encodings_are_refused_by_offset(data, message):
    with pytest.raises(DataError, match=message):
        decode_text(data)


def test_candidates():
    assert caption_candidates(b" a dog \r\n\r\nb\rc\n", lines=True) == ["a dog", "", "b", "c", ""]
    assert caption_candidates(b" a dog\nruns \n") == ["a dog\nruns"]
    assert caption_candidates(["a ", None, " ", "b"]) == ["a", "", "", "b"]
    assert caption_candidates("one\u2028line", lines=True) == ["one\u2028line"]
    with pytest.raises(DataError, match="int 3"):
        caption_candidates(["a", 3])
    with pytest.raises(DataError, match="name one of them"):
        caption_candidates({"caption": "a"})


# JSON


def test_json_fields(draws):
    data = b'\xef\xbb\xbf{"caption": " a dog ", "all": ["", "b"], "short": "d", "none": null}'

    def choose(field, **options):
        return choose_caption(data, draws=draws, json_field=field, **options)

    assert choose("caption") == "a dog"
    assert choose("all") == "b"
    assert choose("none") == ""
    assert choose(["missing", "short"]) == "d"
    assert choose(["caption", "missing", "short"], pick=[0, 5, 1]) == "d"
    assert choose_caption({"x": "y"}, draws=draws, json_field="x") == "y"
    assert choose_caption('{"x": "y"}', draws=draws, json_field="x") == "y"
    assert read_json_field({"x": "a\nb"}, "x") == "a\nb"


@pytest.mark.parametrize(
    ("value", "field", "message"),
    [
        (b'{"a": "b"}', "caption", "no field 'caption'; it has \\['a'\\]"),
        (b'{"a": "b"}', ["c", "d"], "no field 'c' or 'd'"),
        (b'{"a": 3}', "a", "must be text, got int 3"),
        (b'{"a": ["b", {}]}', "a", "must be text, got dict"),
        (b'["a"]', "a", "must be an object with named fields, got list"),
        (b'{"a": ', "a", "cannot be parsed.*char 6"),
        (b"[" * 200_000, "a", "cannot be parsed"),
        (b'{"a": "\\ud83d"}', "a", "half a surrogate pair"),
        (b'{"a": "\xff"}', "a", "not UTF-8"),
    ],
)
def test_bad_json_is_a_data_error(draws, value, field, message):
    with pytest.raises(DataError, match=message):
        choose_caption(value, draws=draws, json_field=field)


def test_parse_json_passes_objects_through():
    record = {"a": 1}
    assert parse_json(record) is record


# Choosing


def test_first_and_blank(draws):
    assert choose_caption(b"\n \nb\nc", lines=True, draws=draws) == "b"
    assert choose_caption(b" \n", lines=True, draws=draws) == ""
    assert choose_caption([], pick="random", draws=draws) == ""
    assert choose_caption([], pick=[1.0], draws=draws) == ""


def test_random_takes_all_alike_and_never_a_blank():
    count = Counter(
        choose_caption(b"a\n\nb\nc\n", lines=True, pick="random", draws=d) for d in MANY
    )
    assert set(count) == {"a", "b", "c"}
    assert all(abs(n - 4000 / 3) < 120 for n in count.values())


def test_weights_keep_their_places_when_captions_are_blank():
    count = Counter(pick_caption(["a", "", "c", "d"], [1, 5, 3], draws=d) for d in MANY)
    assert set(count) == {"a", "c"}
    assert abs(count["c"] - 3000) < 120


def test_each_caption_gets_its_weight():
    count = Counter(pick_caption("abc", [1, 2, 1], draws=d) for d in MANY)
    assert all(abs(count[c] - n) < 120 for c, n in zip("abc", (1000, 2000, 1000), strict=True))


def test_weights_that_are_all_missing_leave_the_first(draws):
    assert pick_caption(["", "b", "c"], [1.0], draws=draws) == "b"


@given(st.lists(st.sampled_from(["", "a", "b", "c"])), st.lists(st.floats(0, 9), max_size=5), DRAWS)
def test_what_is_picked_is_there(candidates, weights, draws):
    for pick in ("first", "random", weights):
        picked = pick_caption(candidates, pick, draws=draws)
        assert picked in candidates if any(candidates) else picked == ""
        assert picked or not any(candidates)


# Affixes


def test_affixes():
    assert add_affixes("a dog", prefix="photo of ", suffix=".") == "photo of a dog."
    assert add_affixes("a dog", prefix="photo of ", trigger="sks") == "sks, photo of a dog"
    assert add_affixes("", prefix="photo of ", suffix=".", trigger="sks") == ""
    assert add_affixes("a dog", trigger="sks", separator=" ") == "sks a dog"


def test_the_trigger_is_put_in_front_once():
    once = add_affixes("a dog", trigger="sks dog")
    assert add_affixes(once, trigger="sks dog") == once == "sks dog, a dog"
    assert add_affixes("my cat, asleep", trigger="cat") == "my cat, asleep"
    assert add_affixes("a category", trigger="cat") == "cat, a category"
    assert add_affixes("a bobcat", trigger="cat") == "cat, a bobcat"
    assert add_affixes("(a+b)", trigger="a+b") == "(a+b)"
    assert add_affixes("一只狗在跑", trigger="狗") == "一只狗在跑"
    assert add_affixes("a dog", prefix="sks ", trigger="sks") == "sks a dog"


# Arguments


@pytest.mark.parametrize("pick", ["last", [], [0, 0], [1, -1], [float("nan")], [float("inf")]])
def test_picks_that_make_no_sense(pick):
    with pytest.raises(ValueError, match=r"pick|weights"):
        check_pick(pick)


def test_arguments_that_make_sense():
    for pick in ("first", "random", [0, 1], (0.5,)):
        check_pick(pick)
