"""The same models and weights in dalle-pytorch 1.6.6 and in penstock, compared.

    python benchmarks/parity/dalle/run.py [--no-speed]

Makes an environment of its own beside this file, which sees the packages of this one. Exits with 1
where penstock differs by more than 1e-5, or is wrong itself where dalle-pytorch is. The results go
to ``benchmarks/results/parity_dalle.json``.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

from _environment import environment  # noqa: E402
from _result import save  # noqa: E402

CLOSE = 1e-5


def main() -> None:
    paths = [str(HERE.parents[2] / ".dev"), str(HERE / "stand_in")]
    done = subprocess.run(
        [str(environment(HERE)), str(HERE / "compare.py"), *sys.argv[1:]],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    found = json.loads(done.stdout.splitlines()[-1])
    far: dict[str, float] = {}
    for numbers in found["cases"].values():
        for what, number in numbers.items():
            far[what] = max(far.get(what, 0.0), number)
    # A difference of nan is no number that is close.
    bad = [n for n, f in found["cases"].items() if not all(v <= CLOSE for v in f.values())]
    bad += [name for name, look in found["wrongs"].items() if not look["penstock_is_right"]]
    known = [name for name, look in found["wrongs"].items() if look["they_are_right"]]
    if known:
        print(f"dalle-pytorch is right, against what was known, in: {', '.join(known)}")
    save(
        "parity_dalle",
        {
            "cases": len(found["cases"]),
            "largest_difference": far,
            "where_they_are_wrong": found["wrongs"],
            "speed_one_thread": found["speed"],
        },
    )
    if bad:
        sys.exit(f"penstock is not as it should be in: {', '.join(bad)}")


if __name__ == "__main__":
    main()
