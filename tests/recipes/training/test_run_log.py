import json
import math

import pytest

from penstock.recipes.training.run_log import LogLine, cut_log, read_log

LINES = [
    LogLine(1, 10.0, values={"train/loss": 0.1 + 0.2, "n": math.nan, "i": -math.inf}),
    LogLine(2, 11.5, images="samples", files=("images/a.png",), captions=("日本 \ud83d\n",)),
    LogLine(2, 11.5, text="note", words="two\nlines"),
    LogLine(3, 12.0, values={"train/loss": 1e-300}),
    LogLine(4, 13.0, values={"train/loss": 5e-324}),
]


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"".join(line.to_json() for line in LINES))
    return path


def test_lines_come_back_to_the_last_bit(log):
    found = read_log(log)
    assert len(found) == len(LINES)
    for line, expected in zip(found, LINES, strict=True):
        assert repr(line) == repr(expected)  # in which no number equals itself


def test_lines_are_strict_json(log):
    def refuse(word):
        raise AssertionError(word)

    rows = [json.loads(s, parse_constant=refuse) for s in log.read_bytes().splitlines()]
    assert rows[0]["values"] == {"train/loss": 0.1 + 0.2, "n": "nan", "i": "-inf"}


@pytest.mark.parametrize("torn", [b'{"step": 5, "ti', b"\x00\xff", LINES[0].to_json()[:-1]])
def test_a_torn_line_is_left_out_and_cut(log, torn):
    whole = log.read_bytes()
    log.write_bytes(whole + torn)
    assert len(read_log(log)) == len(LINES)
    cut_log(log, 4)
    assert log.read_bytes() == whole


@pytest.mark.parametrize("step", range(6))
def test_cut_at_every_step(log, step):
    cut_log(log, step)
    expected = [line.to_json() for line in LINES if line.step <= step and step > 0]
    assert log.read_bytes() == b"".join(expected)


def test_a_log_that_is_whole_is_not_written_again(log):
    before = log.stat().st_ino, log.stat().st_mtime_ns
    cut_log(log, 4)
    assert (log.stat().st_ino, log.stat().st_mtime_ns) == before
    cut_log(log.with_name("missing.jsonl"), 3)
    assert not log.with_name("missing.jsonl").exists()


def test_of_what_was_told_twice_the_later_counts(log):
    again = LogLine(3, 20.0, values={"train/loss": 0.7})
    other = LogLine(3, 20.0, values={"val/loss": 0.8})
    with log.open("ab") as file:
        file.write(again.to_json() + other.to_json())
    assert read_log(log)[1:] == [*LINES[1:3], LINES[4], again, other]


@pytest.mark.parametrize(
    "bad",
    [
        *("[]", "3", "{}", "nonsense", '{"step": 1}', '{"step": Infinity, "time": 1}'),
        *('{"step": 1, "time": 1, "values": [1]}', '{"step": 1, "time": 1, "files": 3}'),
        '{"step": 1, "time": 1, "values": {"a": "cat"}}',
    ],
)
def test_a_line_that_is_wrong_is_said_by_number(log, bad):
    whole = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([*whole[:2], bad.encode() + b"\n", *whole[2:]]))
    with pytest.warns(UserWarning, match="log.jsonl, line 3 is left out"):
        assert len(read_log(log)) == len(LINES)
