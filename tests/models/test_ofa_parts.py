"""Each part against the formulas, and that a wrong part would be seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.models.ofa_files import SMALL
from tests.models.ofa_parts import deviations

from exitwise.models.ofa import layers

PARTS = {"stem", "embedding", "encoder layer", "decoder layer", "head", "whole"}


def test_every_part_is_its_formula(tmp_path: Path) -> None:
    """1e-5 of the largest entry in float32, as promised; in float64 nothing but rounding is left. `make bench` takes the official sizes."""
    found = deviations(SMALL, tmp_path)
    assert set(found) == PARTS and max(value for part, value in found.items() if part != "whole") < 1e-5
    assert max(deviations(SMALL, tmp_path, dtype=torch.float64).values()) < 1e-12


def test_a_wrong_scale_of_attention_shows_in_the_layers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = layers.OFAAttention.finish
    monkeypatch.setattr(layers.OFAAttention, "finish", lambda self, query, *rest: finish(self, query * 1.001, *rest))
    found = deviations(SMALL, tmp_path, dtype=torch.float64)
    assert min(found["encoder layer"], found["decoder layer"]) > 1e-6 and max(found[p] for p in ("stem", "embedding", "head")) < 1e-12
