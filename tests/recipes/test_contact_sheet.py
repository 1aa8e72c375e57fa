import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from penstock.recipes import contact_sheet
from penstock.recipes.contact_sheet import write_contact_sheet

EVIL = "<script>alert(\"x\")</script> & 'more'"


class Page(HTMLParser):
    """Checks that tags are balanced; collects headings, attributes and text."""

    def __init__(self, path):
        super().__init__()
        self.open, self.images, self.links, self.tips, self.words = [], [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag == "img":
            self.images.append(attrs)
        self.links += [v for k, v in attrs.items() if k in ("src", "href")]
        self.tips += [attrs["title"]] if "title" in attrs else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data.strip())


@pytest.fixture
def make_batch():
    def make(number, count, height, width, *, level=128, **fields):
        image = torch.full((count, 3, height, width), level, dtype=torch.uint8)
        keys = [f"k{number}-{i}" for i in range(count)]
        batch = {
            "image": image,
            "caption": [f"caption of {key}" for key in keys],
            "__key__": keys,
            "__url__": ["a.tar"] * count,
            "__batch__": number,
        }
        return {**batch, **fields}

    return make


def test_batches_are_grouped_by_size(tmp_path, make_batch):
    batches = [make_batch(0, 2, 64, 32), make_batch(1, 3, 32, 64), make_batch(2, 2, 64, 32)]
    png, html = write_contact_sheet(batches, tmp_path / "new", title="T", notes="one\ntwo")
    assert (png.name, html.name) == ("contact_sheet.png", "contact_sheet.html")
    assert sorted(p.name for p in png.parent.iterdir()) == [html.name, png.name]
    page = Page(html)
    words = [w for w in page.words if w]
    assert "7 pictures in 3 batches of 2 sizes (height x width)" in words
    assert "one\ntwo" in words
    first, second = words.index("32 x 64"), words.index("64 x 32")
    assert first < second
    assert words[second + 1] == "4 pictures in 2 batches"
    assert words[first + 2 : first + 4] == ["caption of k1-0", "batch 1 · k1-0"]
    assert page.tips[0] == "k1-0\na.tar"
    with Image.open(png) as sheet:
        assert sheet.size[0] > 1000
        colours = sheet.convert("RGB").getcolors(1 << 20)
    assert dict(map(reversed, colours))[128, 128, 128] > 7 * 30 * 60  # all seven are drawn


def test_page_holds_the_pictures_the_right_way_up(tmp_path, make_batch):
    image = torch.zeros(1, 3, 400, 200, dtype=torch.uint8)
    image[:, 0, :200] = 250  # the upper half is red
    image[:, 2, 200:] = 250  # the lower one blue
    _, html = write_contact_sheet([make_batch(0, 1, 1, 1, image=image)], tmp_path, title="T")
    (attrs,) = Page(html).images
    kind, data = attrs["src"].split(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as thumbnail:
        pixels = np.asarray(thumbnail)
    assert [str(n) for n in pixels.shape[:2]] == [attrs["height"], attrs["width"]]
    assert pixels.shape[0] == pytest.approx(2 * pixels.shape[1], abs=2)
    assert (pixels[9] > 100).all(axis=0).tolist() == [True, False, False]
    assert (pixels[-9] > 100).all(axis=0).tolist() == [False, False, True]


def test_everything_is_escaped_and_nothing_is_external(tmp_path, make_batch):
    fields = {name: [EVIL] for name in ("caption", "__key__", "__url__")}
    _, html = write_contact_sheet(
        [make_batch(0, 1, 8, 8, **fields)],
        tmp_path,
        title=EVIL,
        notes=EVIL,
        report_html="<table><tr><td>5</td></tr></table>",
    )
    text = html.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<td>5</td>" in text
    page = Page(html)
    assert EVIL in page.words
    assert page.tips == [f"{EVIL}\n{EVIL}"]
    assert page.images[0]["alt"] == EVIL
    assert all(link.startswith("data:") for link in page.links)
    assert not re.search(r"https?:|url\(|@import", text)


def test_lists_of_arrays_and_missing_fields(tmp_path):
    images = [np.zeros((3, 8, 9), np.uint8), np.zeros((3, 9, 8), np.uint8)]
    _, html = write_contact_sheet([{"image": images}], tmp_path, title="T")
    words = Page(html).words
    assert words.count("no caption") == 2
    assert {"8 x 9", "9 x 8", "1 picture in 1 batch"} <= set(words)


@pytest.mark.parametrize(
    "caption", ["", "word " * 200, "x" * 500, "日本語 🐶", "a\n\n b", "\ud83d"]
)
def test_any_caption_can_be_drawn(tmp_path, make_batch, caption):
    batch = make_batch(0, 1, 16, 16, caption=[caption])
    png, _ = write_contact_sheet([batch], tmp_path, title=caption, notes=caption)
    with Image.open(png) as sheet:
        assert sheet.height < 800


def test_cuts_are_fair_and_said(tmp_path, make_batch, monkeypatch):
    monkeypatch.setattr(contact_sheet, "PAGE_IMAGES", 24)
    batches = [make_batch(0, 40, 8, 8), make_batch(1, 40, 8, 16), make_batch(2, 2, 16, 8)]
    _, html = write_contact_sheet(batches, tmp_path, title="T")
    page = Page(html)
    assert any(w.endswith("; 18 of them are shown") for w in page.words)
    assert [t.split("-")[0] for t in page.tips] == ["k1"] * 8 + ["k0"] * 8 + ["k2"] * 2


@pytest.mark.parametrize(("counts", "limit"), [([3, 5], 64), ([90, 1, 1], 64), ([1] * 100, 64)])
def test_as_many_as_fit_in_whole_rows_are_shown(counts, limit):
    groups = {i: [None] * n for i, n in enumerate(counts)}
    shown = contact_sheet._shown(groups, limit)
    assert all(shown[i] <= n for i, n in enumerate(counts))
    assert sum(shown.values()) <= limit
    assert sum(shown.values()) > min(limit, sum(counts)) - contact_sheet.COLUMNS


def test_cut_groups_end_with_whole_rows():
    shown = contact_sheet._shown({i: [None] * 90 for i in range(3)}, 64)
    assert shown == {0: 24, 1: 24, 2: 16}


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (torch.zeros(1, 3, 4, 4), TypeError, "uint8"),
        (torch.zeros(1, 4, 4, 3, dtype=torch.uint8), ValueError, r"\[4, 4, 3\]"),
        ([], ValueError, "no pictures"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path, make_batch, image, error, message):
    with pytest.raises(error, match=message):
        write_contact_sheet([{"image": image}], tmp_path, title="T")
    assert list(tmp_path.iterdir()) == []
