"""Differences in plain words."""

from penstock.transforms.explain import differences, in_words


def test_differences_go_into_objects() -> None:
    was = {"x": 1, "deep": {"a": 1, "b": [1, 2]}, "gone": 3}
    now = {"x": 1, "deep": {"a": 2, "b": (1, 2)}, "new": None, "more": True}
    assert differences(was, now) == [
        ("deep.a", 1, 2),
        ("more", None, True),
        ("gone", 3, None),
    ]
    assert differences(was, was) == []


def test_words() -> None:
    found = [("a", 1, 2), ("b", None, "x" * 100)]
    said = in_words(found, {"a": "the letter"})
    assert said == f"the letter (a) was 1, and is 2; b was not there, and is {'x' * 77}…"
    assert in_words([], {}) == "the entry was there and is gone"
