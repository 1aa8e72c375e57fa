"""What indexing costs: a scan of a tar's headers, image sizes from headers, buckets for a million.

python benchmarks/index.py
"""

import io
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _result import save
from PIL import Image

from penstock.pipes import Buckets, bucket_report
from penstock.pipes.image_size import read_image_size
from penstock.pipes.sample import Extent
from penstock.pipes.scan_tar import scan_tar

SAMPLES = 10_000


def timed(run: Callable[[], object], repeats: int = 5) -> dict[str, float]:
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        taken.append(time.process_time() - start)
    return {"median_s": round(statistics.median(taken), 4), "least_s": round(min(taken), 4)}


def write(path: Path) -> None:
    """Write 10,000 samples of three members: a small JPEG, a caption, a JSON object."""
    file = io.BytesIO()
    Image.new("RGB", (640, 427), "teal").save(file, "JPEG")
    fields = {"jpg": file.getvalue(), "txt": b"a caption of usual length", "json": b'{"a": 1}'}
    with tarfile.open(path, "w") as tar:
        for i in range(SAMPLES):
            for ext, data in fields.items():
                member = tarfile.TarInfo(f"{i:09d}.{ext}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "00000.tar"
        write(path)
        index = scan_tar(str(path), str(path))
        places = [index.image_extent(i) for i in range(SAMPLES)]
        extents = [Extent(str(path), offset, size) for _, offset, size in filter(None, places)]
        saved = Path(folder) / "index.npz"
        index.save(str(saved), source_size=0, source_mtime_ns=0)
        figures = {
            "scan_10000_samples_of_3": timed(lambda: scan_tar(str(path), str(path))),
            "load_index_of_10000": timed(lambda: type(index).load(str(saved))),
            "image_sizes_of_10000": timed(lambda: [read_image_size(e) for e in extents]),
            "index_bytes": saved.stat().st_size,
        }
    sizes = np.random.default_rng(0).integers(256, 4096, (1_000_000, 2))
    buckets = Buckets.make(1024)
    figures["assign_a_million"] = timed(lambda: buckets.assign_many(sizes))
    figures["report_on_a_million"] = timed(lambda: bucket_report(buckets, sizes))
    save("index", figures)


if __name__ == "__main__":
    main()
