"""Options become a config: from the command line, from a file, and refused in one line."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from penstock.recipes._cli import cli


@dataclass(frozen=True, kw_only=True)
class Config:
    """Do a thing.

    More about it.
    """

    url: str | list[str]
    """What to read."""
    out: Path = Path("out")
    """Where to write."""
    size: tuple[int, int] | None = None
    """Height and width."""

    def __post_init__(self) -> None:
        if self.url == "nothing":
            raise ValueError("nothing is no url")

    def area(self) -> int:
        """Return the area: a method, and no command."""
        return self.size[0] * self.size[1] if self.size else 0

    @property
    def name(self) -> str:
        return self.out.name


def test_a_config_may_have_methods():
    config = cli(Config, ["--url", "a", "--size", "[2, 3]"])
    assert config == Config(url="a", size=(2, 3))
    assert (config.area(), config.name) == (6, "out")


def test_options_override_a_file(tmp_path):
    (tmp_path / "c.yaml").write_text("url: [a, b]\nout: elsewhere\n")
    config = cli(Config, ["--config", str(tmp_path / "c.yaml"), "--out", "here"])
    assert config == Config(url=["a", "b"], out=Path("here"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "url"),
        (["--url", "a", "--no_such", "1"], "no_such"),
        (["--url", "a", "--size", "x"], "size"),
        (["area"], "area"),
    ],
)
def test_bad_arguments_end_the_run(argv, message, capsys):
    with pytest.raises(SystemExit):
        cli(Config, argv)
    assert message in capsys.readouterr().err


def test_what_the_config_refuses_is_one_line():
    with pytest.raises(SystemExit, match=r"^error: nothing is no url$"):
        cli(Config, ["--url", "nothing"])


def test_help_and_print_config(capsys):
    with pytest.raises(SystemExit):
        cli(Config, ["--help"])
    words = capsys.readouterr().out
    assert "Do a thing." in words
    assert "Where to write." in words
    assert "area" not in words
    with pytest.raises(SystemExit):
        cli(Config, ["--url", "a", "--print_config"])
    assert "out: out" in capsys.readouterr().out
