"""Where text and image stand."""

import pytest

from penstock.models.dalle import Layout


def test_length():
    assert Layout(5, 4).length == 21


@pytest.mark.parametrize(
    ("n", "filled"), [(1, 1), (5, 5), (6, 9), (9, 9), (10, 13), (20, 21), (21, 21)]
)
def test_whole_rows(n, filled):
    assert Layout(5, 4).whole_rows(n) == filled
