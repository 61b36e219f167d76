"""The Python on the quickstart's page runs as it stands, on a tiny model in the shipped one's place."""

import re
from pathlib import Path

import torch
from PIL import Image

from exitwise import models
from exitwise.models.ofa import OFAConfig, OFAForConditionalGeneration, OFAProcessor, train_tokenizer

PAGE = Path(__file__).parent.parent / "docs" / "quickstart.md"


def test_the_python_on_the_page_runs(tmp_path, monkeypatch):
    tokenizer = train_tokenizer(["what does the image describe? a dog runs"] * 5, 300)
    torch.manual_seed(0)
    config = OFAConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=32, image_bucket_size=2, image_grids=[[1, 1]],
        stem="efficientnet-lite0", decomposed=True,
    )  # fmt: skip
    OFAForConditionalGeneration(config).save_pretrained(tmp_path / "shipped")
    OFAProcessor.for_config(tokenizer, config).save_pretrained(tmp_path / "shipped")
    Image.new("RGB", (40, 30), "brown").save(tmp_path / "dog.jpg")
    monkeypatch.setattr(models, "shipped_path", lambda: tmp_path / "shipped")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.S | re.M)
    assert len(blocks) == 3
    names = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert (tmp_path / "exits" / "exitwise.json").is_file()
    assert set(names["session"].trace.depth) == {"image", "text", "decoder"}


def test_the_commands_on_the_page_are_real():
    from typer.testing import CliRunner

    from exitwise.cli import app

    for line in re.findall(r"^exitwise (.+)$", PAGE.read_text() + (PAGE.parents[1] / "README.md").read_text(), flags=re.M):
        command, *rest = line.split("#")[0].split()
        help_text = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).stdout
        assert help_text, line
        for word in rest:
            assert not word.startswith("--") or word in help_text, f"{word} of: exitwise {line}"
