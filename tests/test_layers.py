"""Imports point one way: recipes may import everything, pipes may import transforms."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import penstock.pipes

ROOT = Path(penstock.pipes.__file__).parents[1]
MAY_IMPORT = {
    "transforms": {"transforms"},
    "models": {"models"},
    "pipes": {"pipes", "transforms"},
    "recipes": {"recipes", "pipes", "transforms", "models"},
}
BENEATH_PIPES = {
    *("PIL", "fsspec", "numpy", "simplejpeg", "torch", "torchdata", "torchvision", "tqdm"),
    *("pyarrow", "zstandard"),  # pyarrow where a table needs it
    "aiohttp",  # where fsspec opens http URLs by it
    "clip",  # where it is installed and captions get no other tokenizer
}
BENEATH_TRANSFORMS = {
    *("numpy", "torch"),
    *("huggingface_hub", "transformers"),  # where a checkpoint is loaded
    "safetensors",  # where a cache's entry is written
}
BENEATH_MODELS = {
    "torch",
    "huggingface_hub",  # where a checkpoint is loaded
    *("tokenizers", "yaml"),  # where captions become ids, and a configuration is read
}
NEVER_WITH_PIPES = (
    *("accelerate", "diffusers", "jsonargparse", "matplotlib", "pandas", "peft", "pyarrow", "s3fs"),
    *("scipy", "skimage", "sklearn", "transformers", "webdataset"),
)

NEVER_WITH_TRANSFORMS = (
    *NEVER_WITH_PIPES,
    *("PIL", "fsspec", "huggingface_hub", "tokenizers", "torchdata", "torchvision"),
)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the (line, dotted name) of all that a file of the library imports, anywhere in it."""
    package = ["penstock", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *filter(None, [node.module])]
            yield from ((node.lineno, ".".join([*module, alias.name])) for alias in node.names)


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_point_one_way(folder: str) -> None:
    assert files(folder)
    wrong = []
    for path in files(folder):
        for line, name in imports(path):
            parts = name.split(".")
            if parts[0] == "penstock" and parts[1] not in MAY_IMPORT[folder]:
                wrong.append(f"{path}:{line} imports {name}")
    assert not wrong


@pytest.mark.parametrize(
    ("folder", "beneath"),
    [
        ("pipes", BENEATH_PIPES),
        ("transforms", BENEATH_TRANSFORMS),
        ("models", BENEATH_MODELS),
    ],
)
def test_few_packages_are_imported(folder: str, beneath: set[str]) -> None:
    allowed = beneath | sys.stdlib_module_names | {"penstock"}
    wrong = [
        f"{path}:{line} imports {name}"
        for path in files(folder)
        for line, name in imports(path)
        if name.split(".")[0] not in allowed
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("folder", "never"),
    [
        ("pipes", NEVER_WITH_PIPES),
        ("transforms", NEVER_WITH_TRANSFORMS),
        ("models.dalle", (*NEVER_WITH_TRANSFORMS, "sympy")),
    ],
)
def test_importing_loads_nothing_heavy(folder: str, never: tuple[str, ...]) -> None:
    code = f"import sys, penstock.{folder}; print(*{{n.split('.')[0] for n in sys.modules}})"
    env = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True
    )
    loaded = set(done.stdout.split())
    assert {"penstock", "torch"} <= loaded
    assert not loaded & set(never)
