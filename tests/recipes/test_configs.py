"""The configs that come with the recipes load, and begin with a command that runs them."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from penstock.recipes._cli import cli

FOLDER = Path(__file__).parents[2] / "recipes" / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_loads_and_says_how_to_run_it(path, monkeypatch):
    monkeypatch.chdir(FOLDER.parents[1])
    comments = re.match(r"(#.*\n)+", path.read_text())
    assert comments is not None
    words = comments[0].replace("#", " ").replace("\\\n", " ").splitlines()[0]
    command = shlex.split(words)
    assert str(path.relative_to(FOLDER.parents[1])) in command
    module = command[command.index("-m") + 1]
    recipe = importlib.import_module(module)
    cli(recipe.Config, command[command.index(module) + 1 :])
    cli(recipe.Config, ["--config", str(path)])


def test_there_are_configs():
    assert {path.stem for path in CONFIGS} >= {"cache", "flux_lora", "flux_full"}
