"""One running platform for the stories of this folder that need orders to flow."""

from collections.abc import Iterator

import pytest

from tests.support.platform import Platform, free_base


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform of the test file's own, without any order when it starts."""
    ours = Platform(tmp_path_factory.mktemp("shop"), free_base())
    started = ours.do("up")
    assert started.returncode == 0, started.stdout + started.stderr
    yield ours
    ours.do("reset")
