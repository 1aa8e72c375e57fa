import json
import math

import numpy as np
import pytest

from penstock.pipes.bucket_report import bucket_report
from penstock.pipes.buckets import Buckets


@pytest.fixture
def report():
    buckets = Buckets.make(sizes=[(100, 100), (200, 100), (100, 300)], upscale=2.0)
    sizes = [
        (100, 100),  # exactly its bucket
        (1000, 800),  # cropped by a fifth
        (80, 80),  # enlarged by a quarter
        (300, 100),  # twice as tall as wide, cropped by a third
        (20, 20),  # refused
        (0, 0),  # unreadable
        (-1, 5),
    ]
    return bucket_report(buckets, np.array(sizes))


def test_numbers_by_hand(report):
    wide, square, tall = report.rows
    assert (wide.size, wide.images, wide.cropped, wide.enlarged) == ((100, 300), 0, 0, 0)
    assert (square.size, square.images, square.enlarged) == ((100, 100), 3, 1)
    assert square.cropped == pytest.approx(0.2 / 3)
    assert square.enlargement == pytest.approx(1.25)
    assert square.aspect_error == pytest.approx(math.log(1.25) / 3)
    assert (tall.size, tall.images, tall.enlarged, tall.enlargement) == ((200, 100), 1, 0, 1)
    assert tall.cropped == pytest.approx(1 / 3)
    assert tall.aspect_error == pytest.approx(math.log(1.5))
    assert report.total.images == 4
    assert report.total.cropped == pytest.approx((0.2 + 1 / 3) / 4)
    assert (report.refused, report.unreadable, report.images) == (1, 2, 7)


def test_cropped_share_is_what_a_covering_crop_cuts_away():
    buckets = Buckets.make(512)
    rng = np.random.default_rng(0)
    for h, w in rng.integers(300, 3000, (50, 2)):
        bucket_h, bucket_w = buckets.sizes[buckets.assign(h, w)]
        scale = max(bucket_h / h, bucket_w / w)
        kept = (bucket_h * bucket_w) / (h * scale * w * scale)
        report = bucket_report(buckets, np.array([(h, w)]))
        assert report.total.cropped == pytest.approx(1 - kept)
        assert report.total.enlargement == pytest.approx(scale)


def test_text_is_an_aligned_table(report):
    lines = str(report).splitlines()
    table = lines[:-1]
    assert len({len(line) for line in table}) == 1
    assert table[0].split()[:4] == ["bucket", "images", "share", "cropped"]
    assert "100x300       0" in str(report)
    assert "7 images" in lines[-1]
    assert "1 refused" in lines[-1]
    assert "2 unreadable" in lines[-1]


def test_json_reads_back(report):
    read = json.loads(report.to_json())
    assert read["images"] == 7
    assert [row["size"] for row in read["rows"]] == [[100, 300], [100, 100], [200, 100]]
    assert sum(row["images"] for row in read["rows"]) == read["total"]["images"] == 4


def test_html_has_a_row_for_each_bucket(report):
    html = report.to_html()
    assert html.count("<tr>") == html.count("</tr>") == 1 + 3 + 1
    assert "<td>200x100</td><td>1</td>" in html
    assert "<th>all</th><th>4</th>" in html


def test_no_images_no_warnings():
    report = bucket_report(Buckets.make(), np.empty((0, 2), int))
    assert report.total.images == 0
    assert len(report.rows) == 7
    assert "0 images" in str(report)
    json.loads(report.to_json())
