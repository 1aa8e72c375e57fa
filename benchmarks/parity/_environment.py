"""An environment of its own for packages that penstock is compared with."""

import subprocess
import sysconfig
import venv
from pathlib import Path


def environment(folder: Path) -> Path:
    """Return the Python of the environment beside ``folder``/requirements.txt; made if missing.

    It holds these packages without what they ask for; behind them stand those of this environment.
    """
    home = folder / ".venv"
    python, stamp = home / "bin" / "python", home / "made"
    wanted = (folder / "requirements.txt").read_text()
    if not stamp.exists() or stamp.read_text() != wanted:
        venv.create(home, clear=True, with_pip=True)
        packages = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        site = subprocess.run(packages, check=True, capture_output=True, text=True).stdout.strip()
        # Behind its own packages stand those of this environment: torch, webdataset and the rest.
        Path(site, "zz_others.pth").write_text(sysconfig.get_path("purelib") + "\n")
        install = [
            "-m",
            "pip",
            "install",
            "--no-deps",
            "-q",
            "-r",
            str(folder / "requirements.txt"),
        ]
        subprocess.run([str(python), *install], check=True)
        stamp.write_text(wanted)
    return python
