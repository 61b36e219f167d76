"""The clock of `make bench`: turns alternate, all are kept in the run's file, and the ideal is the model cut at those depths."""

import json
from pathlib import Path

import pytest
import torch

from exitwise.bench import record, speed
from exitwise.models.ofa import OFAConfig, OFAForConditionalGeneration


@pytest.fixture(scope="module")
def small() -> OFAForConditionalGeneration:
    """Narrow, with the depths and the image of OFA-Base's shape."""
    torch.manual_seed(0)
    config = OFAConfig(
        vocab_size=5100, d_model=16, encoder_layers=6, decoder_layers=6, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, image_bucket_size=31, token_bucket_size=32, max_position_embeddings=64,
        stem="efficientnet-lite0", decomposed=True, dropout=0.0,
    )  # fmt: skip
    model = OFAForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = None
    return model


def test_turns_alternate_after_a_warm_up() -> None:
    order: list[str] = []
    seconds = speed.alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 4 and {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


def test_every_turn_is_in_the_runs_file(small: OFAForConditionalGeneration, tmp_path: Path) -> None:
    """The record's own fields (its seconds in all) take nothing of a measurement away."""
    for name, measure in (
        ("realised", lambda: speed.realised(2, [(2, 6, 2), (6, 6, 6)], repeats=2, tokens=2, model=small)),
        ("overhead", lambda: speed.overhead(repeats=2, tokens=2, model=small)),
    ):
        found = measure()
        with record.run(tmp_path, name, {}, 0) as run:
            run.update(found)
        written = json.loads(next(tmp_path.glob(f"*-{name}.json")).read_text())
        assert {key: written[key] for key in found} == json.loads(json.dumps(found))
        assert all(len(times) == 2 for times in written["times_s"].values()) and len(written[f"{name}_iqr"]) == 2


def test_the_ideal_says_what_exits_at_its_depths_say(small: OFAForConditionalGeneration) -> None:
    """The same tokens, without any of the library's machinery; other depths say something else."""
    given = speed.inputs(small, 2)
    how = {"max_new_tokens": 6, "num_beams": 1, "do_sample": False}
    said = speed.exits(small, [(2, 6, 2)]).generate(**given, **how)
    assert torch.equal(speed.ideal(small, given, (2, 6, 2), **how), said.sequences)
    assert said.trace.depth["image"].tolist() == [2, 2] and said.depth.unique().tolist() == [2]
