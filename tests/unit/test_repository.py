"""The rules of the repository that no linter knows."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("checkout", "email", "analytics", "warehouse")
MAY_COMMIT = {Path("shared/runtime/db.py"), Path("shared/runtime/group_commit.py")}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

# What a service may be made of; style and import rules know these names.
MUST_HAVE = {"__main__", "app", "settings", "routes", "domain", "store", "migrations"}
MAY_HAVE = {"__init__", "handlers", "commands", "payments", "mailer", "templates", "static"}


def test_the_standard_librarys_email_is_not_hidden_by_the_service_of_that_name() -> None:
    program = "import email, email.message, services.email; print(email.__file__)"

    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert Path(found).parent.parent == Path(ast.__file__).parent


@pytest.mark.parametrize("line", ["await connection.commit()", "transaction.commit(now)"])
def test_the_rule_about_commits_sees_a_commit(line: str) -> None:
    assert _commits(line)


def test_nothing_commits_but_the_two_files_that_may() -> None:
    committing = {path for path in _sources("shared", "services") if _commits((ROOT / path).read_text())}

    assert committing <= MAY_COMMIT


def test_locks_pin_hashes_and_name_no_registry() -> None:
    locks = [
        ROOT / "requirements.lock",
        *(ROOT / "services" / name / "requirements.lock" for name in SERVICES),
    ]

    for lock in locks:
        text = lock.read_text()
        assert not re.search(r"://|^\s*-[a-z]|^\s*--(?!hash)|@ file", text, re.MULTILINE), lock
        assert all("==" in line for line in text.splitlines() if not line.startswith(" ")), lock
        assert "--hash=sha256:" in text


def test_services_run_on_the_versions_that_the_tests_ran_on() -> None:
    tested = _pins(ROOT / "requirements.lock")

    for name in SERVICES:
        assert _pins(ROOT / "services" / name / "requirements.lock") <= tested, name


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_the_same_file_names(name: str) -> None:
    folder = ROOT / "services" / name

    found = {path.stem for path in folder.iterdir() if path.suffix == ".py" or _holds_files(path)}

    assert found >= MUST_HAVE
    assert found <= MUST_HAVE | MAY_HAVE


def test_files_and_functions_stay_small() -> None:
    too_long = [
        f"{path}: {lines} lines"
        for path in _sources("shared", "services", "deploy", "tests")
        if (lines := len((ROOT / path).read_text().splitlines())) > MAX_FILE_LINES
    ]
    too_long += [
        f"{path}:{function.lineno} {function.name}"
        for path in _sources("shared", "services", "deploy", "tests")
        for function in _functions(path)
        # A revision is one list of statements, however long.
        if "migrations" not in path.parts and (function.end_lineno or 0) - function.lineno >= MAX_FUNCTION_LINES
    ]

    assert too_long == []


def test_every_file_of_shared_and_deploy_says_what_it_is_for() -> None:
    silent = [
        path
        for path in _sources("shared", "deploy")
        if (text := (ROOT / path).read_text()) and ast.get_docstring(ast.parse(text)) is None
    ]

    assert silent == []


def _sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT)


def _functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _commits(source: str) -> bool:
    return re.search(r"\.commit\(", source) is not None


def _pins(lock: Path) -> set[str]:
    """The `name==version` of every line that has one, without markers and hashes."""
    return {line.split()[0] for line in lock.read_text().splitlines() if not line.startswith(" ")}


def _holds_files(path: Path) -> bool:
    return path.is_dir() and path.name != "__pycache__" and any(path.iterdir())
