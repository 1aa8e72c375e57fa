"""Names of other libraries say once what replaces them."""

import warnings

import pytest

from penstock.pipes.replaced import warn_replaced


def old_name() -> None:
    warn_replaced("old_name", "NewName(…)")


def test_it_warns_once_for_each_name() -> None:
    warn_replaced.cache_clear()
    with pytest.warns(FutureWarning, match="old_name is kept .* write NewName") as caught:
        old_name()
    assert caught[0].filename == __file__  # the line of the program that calls it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        old_name()
    with pytest.warns(FutureWarning, match="other_name"):
        warn_replaced("other_name", "NewName(…)")
    warn_replaced.cache_clear()
