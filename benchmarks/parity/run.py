"""The same programs on dalle2-pytorch 1.15.6, embedding-reader 1.8.1 and penstock, compared.

    python benchmarks/parity/run.py

Makes an environment of its own beside this file, which sees the packages of this one. Exits with 1
where penstock differs from them in a case in which they are right, or is wrong itself. The table
goes to ``benchmarks/results/parity.md``, the results to ``parity.json``.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from _environment import environment  # noqa: E402
from _result import FOLDER, save  # noqa: E402

ALL = [[n, n, n] for n in range(30)]
FAILS = "an error"
RIGHT: dict[str, tuple[Any, str]] = {
    "two_workers": (ALL, "two workers: each sample once"),
    "no_workers": (ALL, "num_workers=0: each sample once"),
    "shuffle_num": ({"all": True, "shuffled": True}, "shuffle_num=200: all, in another order"),
    "an_unreadable_npy_is_passed_over": (
        {"samples": 20, "wrong": 0},
        "an unreadable .npy, handler=warn_and_continue: its samples are left out, no row is "
        "another sample's",
    ),
    "embeddings_in_the_tar": (ALL, "`.npy` members inside the tars"),
    "img_emb_in_the_tar": (ALL, "`.img_emb` members inside the tars"),
    "png_images": (ALL, "PNG images"),
    "another_file_in_the_folder": (ALL, "a README and another .npy in the embeddings' folder"),
    "a_tar_without_its_npy": (FAILS, "a tar without its .npy: an error, not a tar left out"),
    "read_more_than_nine_files": (list(range(24)), "img_emb_2 before img_emb_10"),
    "read_fortran_order": (list(range(14)), "a file in Fortran order"),
    "read_big_endian": (list(range(14)), "a big-endian file"),
    "read_an_empty_npy_among_captions": ({"wrong": 0}, "an empty .npy among files with captions"),
    "read_a_missing_metadata_file": (FAILS, "a metadata file is missing: an error"),
    "splits_of_three_ranks": (
        [[3, 3, 4], [1, 2, 2], [1, 2, 2]],
        "10, 5 and 5 pairs for three ranks: as even as can be",
    ),
    "splits_that_start_later": (
        [[4, 11, 8], [12, 15, 4], [16, 19, 4]],
        "start=4 of 20: 8, 4 and 4 pairs that cover the rest",
    ),
    "splits_without_a_test_part": ([15, 5, 0], "splits 0.75 + 0.25: an empty test part"),
}
"""What is right where the originals are wrong, and the case in words. In all other cases they are
right, and penstock must give the same."""


def results(library: str, folder: str) -> dict[str, dict[str, Any]]:
    """Return what each program gave on a library."""
    command = [str(environment(HERE)), str(HERE / "programs.py"), library, folder]
    root = os.fspath(HERE.parent.parent / ".dev")
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": root, "PENSTOCK_CACHE": f"{folder}/cache"},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return {found.pop("case"): found for found in map(json.loads, lines)}


def brief(found: dict[str, Any]) -> str:
    """Return a result in few words."""
    if "fails" in found:
        text = str(found["fails"])
    elif isinstance(found["gives"], list) and isinstance(found["gives"][0], list):
        triples = found["gives"]
        wrong = sum(t[0] != t[1] for t in triples)
        text = f"{len(triples)} of 30 samples, {wrong} without their embedding"
        if len(triples[0]) != 3 or len(triples) < 30:
            text = json.dumps(triples)
    else:
        text = json.dumps(found["gives"])
    # Of a path in an error, the file's name.
    text = re.sub(r"/\S*/(\S+)", r"\1", text).replace("|", "\\|")
    return text if len(text) <= 130 else text[:127] + "…"


def is_right(found: dict[str, Any], right: Any) -> bool:
    return "fails" in found if right is FAILS else found.get("gives") == right


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="penstock-parity-") as folder:
        theirs, ours = results("theirs", folder), results("penstock", folder)
    same, differs = [], []
    rows = ["| case | they | penstock |", "|---|---|---|"]
    for name, found in theirs.items():
        mine = ours.get(name, {"fails": "did not run"})
        if name not in RIGHT:
            same.append({"case": name, "same": found == mine and "gives" in found})
            continue
        right, words = RIGHT[name]
        differs.append(
            {
                "case": name,
                "right": words,
                "they_are_right": is_right(found, right),
                "penstock_is_right": is_right(mine, right),
                "they": brief(found),
                "penstock": brief(mine),
            }
        )
        verdict = "right" if right is not FAILS and is_right(mine, right) else brief(mine)
        rows.append(f"| {words} | {brief(found)} | {verdict} |".replace("\n", " "))
    save("parity", {"same": same, "where_they_are_wrong": differs})
    head = "Cases in which dalle2-pytorch 1.15.6 and embedding-reader 1.8.1 go wrong\n\n"
    (FOLDER / "parity.md").write_text(head + "\n".join(rows) + "\n")
    print(head + "\n".join(rows))
    bad = [c["case"] for c in same if not c["same"]]
    bad += [c["case"] for c in differs if not c["penstock_is_right"]]
    if bad:
        sys.exit(f"penstock is not as it should be in: {', '.join(bad)}")


if __name__ == "__main__":
    main()
