import pytest
from braceexpand import braceexpand
from hypothesis import given
from hypothesis import strategies as st

from penstock.pipes.braces import expand_braces

# What braceexpand and bash agree upon: balanced braces, no range of mixed case, and no escaped
# backslash (of which braceexpand leaves nothing inside of braces).
letters = st.text("ab/.-1", max_size=4)
numbers = st.integers(-20, 120).map(str) | st.integers(0, 120).map(lambda n: f"{n:04d}")
step = st.sampled_from(["", "..1", "..3", "..-2", "..0"])
int_range = st.builds(lambda a, b, s: f"{{{a}..{b}{s}}}", numbers, numbers, step)
char_range = st.builds(lambda a, b, s: f"{{{a}..{b}{s}}}", *[st.sampled_from("aceg")] * 2, step)
escaped = st.sampled_from([r"\{", r"\}", r"\,"])


def lists(inner):
    return st.lists(inner, min_size=1, max_size=3).map(lambda parts: "{" + ",".join(parts) + "}")


patterns = st.recursive(
    letters | int_range | char_range | escaped,
    lambda inner: lists(inner) | st.builds("".join, st.lists(inner, max_size=3)),
    max_leaves=6,
)


@given(patterns)
def test_agrees_with_braceexpand(pattern):
    first = list(zip(range(2000), braceexpand(pattern), strict=False))
    assert list(zip(range(2000), expand_braces(pattern), strict=False)) == first


@pytest.mark.parametrize(
    ("pattern", "expected"),  # each as bash 5 prints it
    [
        ("{00000..00002}", "00000 00001 00002"),
        ("x{08..10}", "x08 x09 x10"),
        ("{9..0..4}", "9 5 1"),
        ("{01..-2}", "01 00 -1 -2"),
        ("{c..a}", "c b a"),
        ("{a,{b,c}d}{1..2}", "a1 a2 bd1 bd2 cd1 cd2"),
        ("a{b,c", "a{b,c"),
        ("{a}", "{a}"),
        ("{1{2,3}", "{12 {13"),
        ("{a,b{c,d}", "{a,bc {a,bd"),
        ("{{1,2}", "{1 {2"),
        ("{a,b}}", "a} b}"),
        (r"\{a,b\}", "{a,b}"),
        (r"{a,\\}", "a \\"),
    ],
)
def test_expands_as_bash_does(pattern, expected):
    assert " ".join(expand_braces(pattern)) == expected


def test_is_lazy():
    assert next(expand_braces("{0..999999999999999}/{a,b}")) == "0/a"
