"""The code on the pages of `docs/` runs, from top to bottom of each page; and what they name is there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = ["adding-a-family.md", "adding-a-method.md", "decoding.md"]


@pytest.mark.parametrize("page", PAGES)
def test_the_code_on_the_page_runs(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (DOCS / page).read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, flags=re.S | re.M))
    assert len(blocks) >= 2
    module = ModuleType("a_page_of_docs")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in blocks:
        above = text[: block.start(1)].count("\n")  # so that a traceback has the page's line numbers
        exec(compile("\n" * above + block[1], str(DOCS / page), "exec"), module.__dict__)


@pytest.mark.parametrize("page", [*PAGES, "architecture.md", "glossary.md", "guarantees.md", "ofa.md", "reproducing-mue.md"])
def test_files_that_a_page_names_exist(page: str) -> None:
    text = (DOCS / page).read_text()
    for name in re.findall(r"`((?:src|tests|docs|recipes)/[\w./-]+)`", text):
        assert (DOCS.parent / name).exists(), f"docs/{page} names {name}"
    for name in re.findall(r"^  ([\w/]+(?:\.py|/)) ", text, flags=re.M):
        assert (DOCS.parent / "src" / "exitwise" / name).exists(), f"docs/{page} draws {name}"
