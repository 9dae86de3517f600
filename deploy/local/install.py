"""Fill .venv with exactly what requirements.lock names, using nothing but the standard library."""

import fcntl
import os
import subprocess
import sys
import venv
from pathlib import Path

LOCK = Path("requirements.lock")
NO_PIP = "This Python has neither pip nor ensurepip: apt install python3-venv, then try again."
FAILED = "Installing failed, see above. Behind a mirror, tell pip where it is (pip config list shows it)."


class InstallError(Exception):
    """What went wrong, in one line that says what to do."""


def main() -> int:
    folder, stamp = Path(sys.argv[1]), sys.argv[2]
    folder.mkdir(exist_ok=True)
    try:
        with (folder / "install.lock").open("w") as guard:
            # Two shells may say `make test` in a fresh working copy at the same moment.
            fcntl.flock(guard, fcntl.LOCK_EX)
            if _read(folder / "installed") != stamp:
                _install(folder, stamp)
    except InstallError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _install(folder: Path, stamp: str) -> None:
    print(f"Installing into {folder} …", flush=True)
    (folder / "installed").unlink(missing_ok=True)
    python = folder / "bin" / "python"
    pip = _create(folder, python)
    environment = {**os.environ, **_uv_environment(pip)}
    uv_lock = folder / "uv.txt"
    uv_lock.write_text(_locked("uv"))
    if _run([*pip, "install", "-qq", "--require-hashes", "-r", str(uv_lock)], environment) == 0:
        command = [str(python), "-m", "uv", "pip", "sync", "--quiet", "--require-hashes", str(LOCK)]
        environment["VIRTUAL_ENV"] = str(folder.resolve())
    else:
        command = [*pip, "install", "--quiet", "--require-hashes", "-r", str(LOCK)]
    if _run(command, environment) != 0:
        raise InstallError(FAILED)
    (folder / "installed").write_text(stamp)


def _create(folder: Path, python: Path) -> list[str]:
    """Make the environment and return the pip command that installs into it."""
    try:
        venv.create(folder, clear=False, symlinks=True, with_pip=True)
    except (subprocess.CalledProcessError, ImportError):
        # Debian splits ensurepip off; the system's pip can install into the environment instead.
        if _run([sys.executable, "-m", "pip", "--version"], dict(os.environ), quiet=True) != 0:
            raise InstallError(NO_PIP) from None
        venv.create(folder, clear=False, symlinks=True, with_pip=False)
        return [sys.executable, "-m", "pip", "--python", str(python)]
    return [str(python), "-m", "pip"]


def _locked(package: str) -> str:
    """The lines of the lock that pin one package."""
    lines: list[str] = []
    for line in LOCK.read_text().splitlines():
        if line.startswith(f"{package}=="):
            lines = [line]
        elif lines and line.startswith("    "):
            lines.append(line)
        elif lines:
            break
    return "\n".join(lines) + "\n"


def _uv_environment(pip: list[str]) -> dict[str, str]:
    """Say to uv what pip knows: uv reads neither pip's files nor its PIP_ variables."""
    settings = {
        "UV_DEFAULT_INDEX": _pip_setting(pip, "index-url"),
        "UV_INDEX": _pip_setting(pip, "extra-index-url"),
        "UV_FIND_LINKS": ",".join(_pip_setting(pip, "find-links").split()),
        "SSL_CERT_FILE": _pip_setting(pip, "cert"),
        # Hashes decide what is installed, so it does not matter which index offers it first.
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_SYSTEM_CERTS": "1",
        "UV_NO_PROGRESS": "1",
    }
    return {name: value for name, value in settings.items() if value and name not in os.environ}


def _pip_setting(pip: list[str], name: str) -> str:
    for section in (":env:", "install", "global"):
        command = [*pip, "config", "get", f"{section}.{name}"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode == 0:
            return " ".join(found.stdout.split())
    return ""


def _run(command: list[str], environment: dict[str, str], *, quiet: bool = False) -> int:
    output = subprocess.DEVNULL if quiet else None
    return subprocess.run(command, env=environment, check=False, stdout=output, stderr=output).returncode


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main())
