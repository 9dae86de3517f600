"""Leaves out the tests that bring servers of their own: to them it makes no difference what else there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """The fixtures that stand for what is tried."""
    parser.addoption("--touching", nargs="+", default=[], metavar="fixture", help="only tests that need one of these")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without the option everything stays."""
    wanted = {*config.getoption("--touching")}
    if wanted:
        left_out = [item for item in items if not wanted & _needs(item)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _needs(item: pytest.Item) -> set[str]:
    """Its fixtures, and those that it asks for by a parameter."""
    parameters = getattr(item, "callspec", None)
    asked = {value for value in parameters.params.values() if isinstance(value, str)} if parameters else set()
    return {*getattr(item, "fixturenames", ()), *asked}
