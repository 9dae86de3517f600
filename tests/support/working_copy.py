"""The project in a folder of its own, for tests that write into it."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.platform import ROOT

NEEDED = ("services", "shared", "deploy", "Makefile", "pyproject.toml", "requirements.in", "requirements.lock")


def working_copy(folder: Path) -> Path:
    """A copy, with what is installed here."""
    copy = folder / "orderstream"
    copy.mkdir()
    for name in NEEDED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name)
        else:
            shutil.copy(source, copy / name)
    venv = copy / ".venv"
    venv.mkdir()
    for part in ("bin", "lib", "pyvenv.cfg"):
        (venv / part).symlink_to(Path(sys.prefix) / part)
    lock = (copy / "requirements.lock").read_bytes()
    cksum = shutil.which("cksum")
    assert cksum
    stamp = subprocess.run([cksum], input=lock, capture_output=True, check=True).stdout.decode().strip()
    (venv / "installed").write_text(f"{stamp} {copy}\n")
    return copy
