"""A page on a run: is it learning, is it overfitting, its samples, what it was trained on.

    python -m penstock.recipes.training.report --run out/flux

It is made from the run's folder alone, at any time, and needs no other file and no network.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import yaml

from .._cli import cli
from ..page import html_page
from ..write_file import write_file
from . import line_chart as charts
from . import report_pictures
from .curve import Curve, curves_of
from .line_chart import Drawn, line_chart
from .report_pictures import pictures_section, sheet_figure
from .run_log import LOG, LogLine, read_log
from .tracker import IMAGES_PER_SECOND, TRAIN_LOSS, VAL_LOSS, short_number
from .verdict import change, smoothing_of, verdict

REPORT, SHEET = "report.html", "contact_sheet.png"
CONFIGS = ("config.yaml", "config.json")
TEXTS = 50
RATES = ("lr", "learning_rate")

STYLE = """
body { max-width: 76rem } h1 { margin: 0 0 .2rem } header p { margin: 0 }
h2 { margin: 2.6rem 0 .9rem; padding-top: .9rem; border-top: 1px solid var(--line) }
h3 { font-size: .95rem; margin: 0 }
.verdict { border-left: 5px solid var(--faint); padding: .1rem 0 .1rem 1rem; margin: 1.4rem 0 }
.verdict b { font-size: 1.15rem; display: block } .verdict p { margin: .2rem 0; max-width: 52rem }
.verdict.good { border-color: #2f9e5f } .verdict.watch { border-color: #e0a100 }
.verdict.bad { border-color: #d6403a }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .8rem;
  margin: 1.2rem 0 2rem }
.tile { border: 1px solid var(--line); border-radius: 8px; padding: .6rem .9rem }
.tile b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums }
.tile span { display: block; color: var(--faint); font-size: .82rem }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr));
  gap: 2rem 2.4rem }
.values td, .values th { text-align: right } summary { cursor: pointer; color: var(--faint) }
.config { width: 100% } .config th { text-align: left; font-weight: normal; color: var(--faint);
  white-space: nowrap; vertical-align: top; width: 1% }
.config td { overflow-wrap: anywhere; white-space: pre-wrap } .texts pre { white-space: pre-wrap;
  overflow-wrap: anywhere; margin: .2rem 0 1rem; font-size: .85rem }
details { margin-top: .8rem } footer { margin-top: 3rem; font-size: .82rem; color: var(--faint) }
"""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Write report.html into a run's folder, from what its training has written there."""

    run: Path
    """The run's folder: the one with log.jsonl."""
    title: str | None = None
    """Heading; the folder's name where it is not given."""


def write_report(
    folder: str | Path,
    *,
    title: str | None = None,
    config: Mapping[str, Any] | object | None = None,
    steps: int | None = None,
    contact_sheet: str | Path | None = None,
) -> Path:
    """Return the path of ``report.html``, written into a run's folder, whole or not at all.

    Args:
        folder: The run's folder, with ``log.jsonl`` and what its lines name.
        title: Heading; without it, the folder's name.
        config: A mapping or dataclass; without it, what ``config.yaml`` or ``config.json`` in the
            folder says.
        steps: Steps of the whole training; without it, what the configuration calls ``steps``.
        contact_sheet: Picture of the data; without it, ``contact_sheet.png`` in the folder if there
            is one.

    Raises:
        FileNotFoundError: If there is no ``log.jsonl``, or no such ``contact_sheet``.
    """
    folder = Path(folder)
    if not (folder / LOG).is_file():
        raise FileNotFoundError(f"{folder} has no {LOG}: give the folder of a training")
    sheet = folder / SHEET if contact_sheet is None else Path(contact_sheet)
    if contact_sheet is not None and not sheet.is_file():
        raise FileNotFoundError(f"there is no contact sheet {sheet}")
    settings = _settings(folder, config)
    if steps is None and isinstance(settings.get("steps"), int):
        steps = settings["steps"]
    lines = read_log(folder / LOG)
    curves = curves_of(lines)
    title = title or folder.resolve().name
    body = [
        _header(title, lines),
        _verdict(curves),
        _tiles(lines, curves, steps),
        *_loss(curves),
        *_samples(folder, lines),
        *_charts(curves),
        *_data(sheet),
        *_texts(lines),
        *_config_table(settings),
        f"<footer>Made from {LOG}, {len(lines):,} lines, at {_when()}.</footer>",
    ]
    style = charts.STYLE + report_pictures.STYLE + STYLE
    return write_file(folder / REPORT, html_page(title, "\n".join(body), style=style))


def _settings(folder: Path, config: Any) -> dict[str, Any]:
    if config is None:
        path = next((folder / name for name in CONFIGS if (folder / name).is_file()), None)
        if path is None:
            return {}
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))  # which reads JSON as well
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            return {path.name: f"cannot be read: {error}"}  # a page without it is still of use
        return config if isinstance(config, dict) else {}
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return dataclasses.asdict(config)
    return dict(config)


def _header(title: str, lines: Sequence[LogLine]) -> str:
    words = "Nothing has been logged yet."
    if lines:
        first, last = (_when(line.time) for line in (lines[0], lines[-1]))
        words = f"first logged {first}, last {last}, at step {lines[-1].step:,}"
    return f'<header><h1>{escape(title)}</h1><p class="faint">{words}</p></header>'


def _verdict(curves: Mapping[str, Curve]) -> str:
    said = verdict(curves.get(TRAIN_LOSS), curves.get(VAL_LOSS))
    return (
        f'<div class="verdict {said.kind}"><b>{escape(said.headline)}</b>'
        f"<p>{escape(said.words)}</p></div>"
    )


def _tiles(lines: Sequence[LogLine], curves: Mapping[str, Curve], steps: int | None) -> str:
    tiles = []
    if lines:
        step = max(line.step for line in lines)
        share = f"of {steps:,}, {100 * step / steps:.0f} %" if steps else "so far"
        tiles.append(("Steps", f"{step:,}", share))
    train = curves[TRAIN_LOSS].finite if TRAIN_LOSS in curves else None
    if train is not None and len(train.steps):
        mean = train.smooth(smoothing_of(train)).values
        points = min(len(train.steps), round(smoothing_of(train)))
        words = f"mean of about {points} points"
        tiles.append(("Training loss", short_number(float(mean[-1])), words))
    held_out = curves[VAL_LOSS].finite if VAL_LOSS in curves else None
    if held_out is not None and len(held_out.steps):
        first, last = float(held_out.values[0]), float(held_out.values[-1])
        words = f"{change(first, last)} since step {held_out.steps[0]:,}"
        tiles.append(("Validation loss", short_number(last), words))
        best = int(held_out.values.argmin())
        words = f"at step {held_out.steps[best]:,}"
        tiles.append(("Lowest validation", short_number(float(held_out.values[best])), words))
    rates = curves[IMAGES_PER_SECOND].finite.values if IMAGES_PER_SECOND in curves else None
    if rates is not None and len(rates):
        tiles.append(("Images per second", short_number(float(rates[-1])), "when last logged"))
    cells = (
        f'<div class="tile"><span>{escape(name)}</span><b>{escape(value)}</b>'
        f"<span>{escape(words)}</span></div>"
        for name, value, words in tiles
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def _loss(curves: Mapping[str, Curve]) -> Iterable[str]:
    drawn = []
    if TRAIN_LOSS in curves:
        drawn.append(Drawn(curves[TRAIN_LOSS], "training"))
    if VAL_LOSS in curves:
        drawn.append(Drawn(curves[VAL_LOSS], "validation", dots=True, best=True))
    if drawn:
        yield line_chart(drawn, title="Loss", width=1120, height=400)
    held_out = curves.get(VAL_LOSS)
    if held_out is not None:
        rows = "".join(
            f"<tr><td>{step:,}</td><td>{value:.6g}</td></tr>"
            for step, value in zip(held_out.steps.tolist(), held_out.values.tolist(), strict=True)
        )
        yield (
            '<details class="values"><summary>Every validation loss</summary><table><tr><th>step'
            f"</th><th>loss</th></tr>{rows}</table></details>"
        )


def _samples(folder: Path, lines: Sequence[LogLine]) -> Iterable[str]:
    named: dict[str, list[LogLine]] = defaultdict(list)
    for line in lines:
        # A log is text: nothing outside the folder is shown because it says so.
        inside = [(folder / f).resolve().is_relative_to(folder.resolve()) for f in line.files]
        if line.images and line.files and all(inside):
            named[line.images].append(line)
    for name, found in named.items():
        yield pictures_section(folder, name, sorted(found, key=lambda line: line.step))


def _charts(curves: Mapping[str, Curve]) -> Iterable[str]:
    """Yield charts of all but the loss: one for each group of names, as `Trackers` says."""
    groups: dict[str, list[Drawn]] = defaultdict(list)
    for name, curve in curves.items():
        if name in (TRAIN_LOSS, VAL_LOSS):
            continue
        head, _, rest = name.partition("/")
        side = {"train": "training", "val": "validation"}.get(head) if rest else None
        group, _, label = (rest if side else name).partition("/")
        label = label or side or group.replace("_", " ")
        if side == "validation":
            group = f"Validation {group}" if group != "loss" else "Validation loss of parts"
        groups[group].append(Drawn(curve, label, dots=side == "validation"))
    if groups:
        figures = [
            # Schedules are told by their shape, which a logarithm would bend.
            line_chart(drawn, title=_heading(group), log=False if group in RATES else None)
            for group, drawn in groups.items()
        ]
        yield f'<h2>What else was logged</h2><div class="plots">{"".join(figures)}</div>'


def _heading(group: str) -> str:
    words = "learning rate" if group in RATES else group.replace("_", " ")
    return words[:1].upper() + words[1:]


def _data(sheet: Path) -> Iterable[str]:
    if sheet.is_file():
        yield f"<h2>What it was trained on</h2>{sheet_figure(sheet, 'contact sheet of the data')}"


def _texts(lines: Sequence[LogLine]) -> Iterable[str]:
    found = [line for line in lines if line.text]
    if found:
        few = f" <small>the last {TEXTS} of {len(found):,}</small>" if len(found) > TEXTS else ""
        words = "".join(
            f'<div class="faint">step {line.step:,} · {escape(line.text)}</div>'
            f"<pre>{escape(line.words)}</pre>"
            for line in found[-TEXTS:]
        )
        yield f'<h2>Notes{few}</h2><div class="texts">{words}</div>'


def _config_table(settings: Mapping[str, Any]) -> Iterable[str]:
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value in _flat(settings)
    )
    if rows:
        yield f'<h2>Configuration</h2><table class="config">{rows}</table>'


def _flat(settings: Mapping[Any, Any], above: str = "") -> Iterable[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{name}.")
        elif isinstance(value, (list, tuple)):
            yield f"{above}{name}", "\n".join(map(str, value)) or "none"
        else:
            yield f"{above}{name}", "none" if value is None else str(value)


def _when(seconds: float | None = None) -> str:
    when = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return f"{when:%Y-%m-%d %H:%M} UTC"


def main(cfg: Config) -> None:
    """Write the report, and say where it is."""
    print(write_report(cfg.run, title=cfg.title))


if __name__ == "__main__":
    main(cli(Config))
