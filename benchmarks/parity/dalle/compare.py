"""All comparisons, as one line of JSON: run by run.py in the environment of dalle-pytorch."""

import json
import sys
import warnings

import torch

warnings.filterwarnings("ignore")

from cases import all_cases  # noqa: E402
from files import file_cases  # noqa: E402
from speed import generation, training  # noqa: E402
from wrongs import WRONGS  # noqa: E402

ROUNDS = 5
VOCABULARIES = (10_000, 1_000)
"""Words: dalle-pytorch's default, and few."""


def main() -> None:
    torch.set_num_threads(1)  # small sizes; and seconds of CPU time are compared
    found: dict[str, object] = {"cases": {}, "wrongs": {}, "speed": {}}
    for name, far in (*all_cases(), *file_cases()):
        print(name, file=sys.stderr, flush=True)
        found["cases"][name] = far
    for name, look in WRONGS.items():
        print(name, file=sys.stderr, flush=True)
        theirs, ours, they, we = look()
        found["wrongs"][name] = {
            "they": theirs,
            "penstock": ours,
            "they_are_right": they,
            "penstock_is_right": we,
        }
    if "--no-speed" not in sys.argv:
        for kind in ("full", "axial_row", "axial_col", "conv_like"):
            for words in VOCABULARIES:
                name = f"training, {kind}, {words} words"
                print(name, file=sys.stderr, flush=True)
                found["speed"][name] = training(kind, 32, 16, words, ROUNDS)
            name = f"256 codes with use_cache, {kind}"
            print(name, file=sys.stderr, flush=True)
            found["speed"][name] = generation(kind, 16, VOCABULARIES[-1], 1)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
