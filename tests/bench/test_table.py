"""A table in a page: it takes the place of the one before, or says why it cannot."""

import pytest

from exitwise.bench.table import between
from exitwise.errors import InputError


def test_a_table_takes_the_place_of_what_stood_between_the_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\nolder\n<!-- b -->\nafter\n")
    between(page, ("<!-- a -->", "<!-- b -->"), r"| \1 | new |")
    assert page.read_text() == "before\n<!-- a -->\n| \\1 | new |\n<!-- b -->\nafter\n"
    with pytest.raises(InputError, match="0 times"):
        between(page, ("<!-- c -->", "<!-- b -->"), "x")
    assert "new" in page.read_text()
