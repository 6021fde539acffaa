"""Fixtures of the tests of servers."""

import pytest
from stand_in import photograph


@pytest.fixture
def pair(tmp_path):
    """Two photographs of one colour."""
    folder = tmp_path / "pair"
    return [photograph(folder, 100, "a.png"), photograph(folder, 100, "b.png")]
