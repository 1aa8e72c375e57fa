"""Modules to run: ``python -m penstock.recipes.NAME`` assembles pipes, transforms and models."""

__all__: list[str] = []
