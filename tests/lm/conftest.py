"""The kernel that a test set up is not the next one's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from exitwise import few


@pytest.fixture(autouse=True)
def _looked_for_anew() -> Iterator[None]:
    few.kernel.cache_clear()
    yield
    few.kernel.cache_clear()
