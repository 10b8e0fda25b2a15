"""The environment that peers run in: their packages from PyPI, beside the project's own torch and numpy.

    python benchmarks/peers/environment.py work/peers        # prints the path of its Python

Peers are installed without what they depend on, into a virtual environment that sees the project's packages: so that
they run on the same build of torch, and the project's own environment stays as its lock says.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

PEERS = ("deepctr-torch==0.3.0", "lightgbm==4.7.0", "fuxictr==2.3.10", "polars==1.40.0",
         "polars-runtime-32==1.40.0", "h5py==3.16.0")


def peers_python(folder: Path) -> Path:
    """Path of the environment's interpreter; made on first use, and anew where the list of peers has changed."""
    folder = folder.absolute()
    python, stamp = folder / "bin" / "python", folder / "peers.txt"
    if stamp.is_file() and stamp.read_text() == "\n".join(PEERS):
        return python
    venv.create(folder, with_pip=True, clear=True)
    own = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True,
                         capture_output=True, text=True).stdout.strip()
    Path(own, "project.pth").write_text("".join(f"{p}\n" for p in sys.path if p.endswith("site-packages")))
    subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", *PEERS],
                   check=True)
    stamp.write_text("\n".join(PEERS))
    return python


if __name__ == "__main__":
    print(peers_python(Path(sys.argv[1])))
