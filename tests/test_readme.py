"""What the documentation shows works as it stands."""

import importlib
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

from penstock.recipes._cli import cli
from penstock.recipes.make_shapes import shape_samples, write_shards

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MODULE = re.compile(r"-m (penstock\.recipes\.\w+)(.*)")


class Block(NamedTuple):
    file: str
    line: int
    text: str


def blocks(language: str) -> list[Block]:
    """Return the fenced blocks of a language in README.md and docs."""
    found = []
    for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]:
        text = path.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            if match[1] == language:
                line = text.count("\n", 0, match.start()) + 2
                found.append(Block(str(path.relative_to(ROOT)), line, match[2]))
    return found


def name(block: Block) -> str:
    return f"{block.file}:{block.line}"


@pytest.fixture
def with_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in a folder with shards, a folder of photographs, and a manifest of it."""
    write_shards(shape_samples(80, image_format="jpg"), tmp_path / "shards", samples_per_shard=20)
    (tmp_path / "photographs").mkdir()
    (tmp_path / "my_dataset").mkdir()
    rows = ["image_path\ttext"]
    for sample in shape_samples(12, image_format="jpg"):
        image = tmp_path / "photographs" / f"{sample['__key__']}.jpg"
        image.write_bytes(sample["jpg"])
        image.with_suffix(".txt").write_bytes(sample["txt"])
        rows.append(f"../photographs/{image.name}\t{sample['txt'].decode()}")
    (tmp_path / "my_dataset" / "data.tsv").write_text("\n".join(rows) + "\n")
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("with_shards")
@pytest.mark.parametrize("block", blocks("python"), ids=name)
def test_python_runs(block: Block) -> None:
    code = compile("\n" * (block.line - 1) + block.text, block.file, "exec")
    exec(code, {"__name__": "__main__"})


def test_there_is_something_to_test() -> None:
    assert blocks("python")
    assert commands()


def commands() -> list[Block]:
    """Return the shell commands that run recipes, with backslashes at ends of lines joined."""
    found = []
    for block in blocks("bash"):
        for number, text in enumerate(block.text.replace("\\\n", "  ").splitlines()):
            if MODULE.search(text):
                found.append(Block(block.file, block.line + number, text))
    return found


@pytest.mark.parametrize("command", commands(), ids=name)
def test_commands_parse(command: Block) -> None:
    match = MODULE.search(command.text)
    assert match is not None
    recipe = importlib.import_module(match[1])
    cli(recipe.Config, shlex.split(match[2], comments=True))


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    wanted = {word for block in blocks("bash") for word in re.findall(r"^make (\w+)", block.text)}
    assert wanted
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in wanted)
