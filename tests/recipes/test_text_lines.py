import pytest
from PIL import ImageFont

from penstock.recipes.text_lines import text_lines


@pytest.mark.parametrize(
    "text", ["x" * 500, "some words that need more than a line " * 9, "a " * 300]
)
def test_lines_fit_their_width(text):
    font = ImageFont.load_default(12)
    lines = text_lines(text, font, 180, 3)
    assert len(lines) <= 3
    assert all(font.getlength(line) <= 180 for line in lines)
    assert lines[-1].endswith("…")


def test_lines_are_broken_at_words():
    font = ImageFont.load_default(12)
    wide = font.getlength("one two")
    assert text_lines("one two  three", font, wide, 3) == ["one two", "three"]
    assert text_lines("one\n\ntwo", font, wide, 3) == ["one", "", "two"]
    assert text_lines("one\ntwo", font, wide, 1) == ["one…"]
    assert text_lines("", font, wide, 3) == [""]


def test_what_is_far_too_long_takes_no_longer(monkeypatch):
    class Font:
        asked = longest = 0

        def getlength(self, text):
            self.asked, self.longest = self.asked + 1, max(self.longest, len(text))
            return 10 * len(text)

    font = Font()
    (line,) = text_lines("x" * 1_000_000, font, 100, 1)
    assert line == "xxxxxxxxx…"
    assert font.asked < 50
    assert font.longest < 5000
