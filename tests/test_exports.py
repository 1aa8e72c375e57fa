"""A folder's face is what its ``__all__`` says, sorted."""

import importlib
import types

import pytest


@pytest.mark.parametrize("folder", ["models", "models.dalle", "pipes", "recipes", "transforms"])
def test_all_is_sorted_and_true(folder: str) -> None:
    module = importlib.import_module(f"penstock.{folder}")
    assert module.__doc__
    assert module.__all__ == sorted(set(module.__all__))
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public == set(module.__all__)
