"""Keep a benchmark's figures as JSON, with the machine that they come from."""

import datetime
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"


def save(name: str, figures: dict[str, Any]) -> Path:
    """Write ``benchmarks/results/NAME.json`` and print the figures; return the path."""
    result = {
        "benchmark": name,
        "date": datetime.date.today().isoformat(),
        "machine": {
            "system": platform.system(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            **{p: version(p) for p in ("torch", "torchdata", "numpy", "pillow", "simplejpeg")},
        },
        "figures": figures,
    }
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    new = path.with_suffix(".new")
    new.write_text(json.dumps(result, indent=2) + "\n")
    new.rename(path)
    print(json.dumps(figures, indent=2))
    print(f"written to {path}")
    return path


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
