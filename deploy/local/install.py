"""Fill .venv with exactly what requirements.lock names, using nothing but the standard library."""

import ast
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

LOCK = Path("requirements.lock")
NO_VENV = "This Python cannot make a virtual environment in .venv: apt install python3-venv, then try again."
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
    environment = uv_environment(pip)
    uv, others = folder / "uv.txt", folder / "others.txt"
    uv.write_text(_locked(lambda name: name == "uv"))
    others.write_text(_locked(lambda name: name != "uv"))
    install = [*pip, "install", "-qq", "--require-hashes", "-r"]
    if _run([*install, str(uv)], environment, quiet=True) == 0:
        command = [str(python), "-m", "uv", "pip", "sync", "--quiet", "--require-hashes", str(LOCK)]
        environment["VIRTUAL_ENV"] = str(folder.resolve())
    else:
        # There is no uv for every machine; only `make lock` needs it, installing is merely faster with it.
        command = [*install, str(others)]
    if _run(command, environment) != 0:
        raise InstallError(FAILED)
    (folder / "installed").write_text(stamp)


def _create(folder: Path, python: Path) -> list[str]:
    """Make the environment and return the pip command that installs into it."""
    if _run([sys.executable, "-m", "venv", "--without-pip", str(folder)], dict(os.environ), quiet=True) != 0:
        raise InstallError(NO_VENV)
    # The pip of this Python installs into the environment too, and saves the seconds of unpacking another.
    shared = [sys.executable, "-m", "pip", "--python", str(python)]
    if _run([*shared, "--version"], dict(os.environ), quiet=True) == 0:
        return shared
    if _run([str(python), "-m", "ensurepip"], dict(os.environ), quiet=True) == 0:
        return [str(python), "-m", "pip"]
    raise InstallError(NO_PIP)


def _locked(wanted: Callable[[str], bool]) -> str:
    """The lines of the lock that pin the packages whose names are wanted."""
    lines: list[str] = []
    take = False
    for line in LOCK.read_text().splitlines(keepends=True):
        if not line.startswith(" "):
            take = wanted(line.partition("==")[0])
        if take:
            lines.append(line)
    return "".join(lines)


def uv_environment(pip: list[str]) -> dict[str, str]:
    """This one, and what pip knows: uv reads neither pip's files nor its PIP_ variables."""
    known = _pip_settings(pip)
    settings = {
        "UV_DEFAULT_INDEX": known.get("index-url", ""),
        "UV_INDEX": known.get("extra-index-url", ""),
        "UV_FIND_LINKS": known.get("find-links", "").replace(" ", ","),
        "SSL_CERT_FILE": known.get("cert", ""),
        # Hashes decide what is installed, so it does not matter which index offers it first.
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_SYSTEM_CERTS": "1",
        "UV_NO_PROGRESS": "1",
    }
    return {name: value for name, value in settings.items() if value} | os.environ


def _pip_settings(pip: list[str]) -> dict[str, str]:
    """What pip's files and variables say; the variables, which it lists first, win."""
    found: dict[str, str] = {}
    listed = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=False)
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        section, _, name = name.rpartition(".")
        if section in {":env:", "install", "global"}:
            found.setdefault(name, " ".join(str(ast.literal_eval(value)).split()))
    return found


def _run(command: list[str], environment: dict[str, str], *, quiet: bool = False) -> int:
    output = subprocess.DEVNULL if quiet else None
    return subprocess.run(command, env=environment, check=False, stdout=output, stderr=output).returncode


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main())
