"""A tiny unified model and tiny folders of both tasks, for whatever judges one."""

import json

import pytest
import torch
from PIL import Image

from exitwise import Engine
from exitwise.bench import tasks
from exitwise.bench.ask import Asker, load_pair
from exitwise.models.ofa import OFAConfig, OFAForConditionalGeneration, OFAProcessor, train_tokenizer

WORDS = [
    "what does the image describe?",
    "red green blue black picture",
    "it is red true or false?",
    "which colour is it?",
    "yes no true false",
]
COLOURS = ("red", "green", "blue", "black", "white", "yellow")


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with a saved tiny model and the folders of two tasks, six pictures each, of two shapes."""
    root = tmp_path_factory.mktemp("judged")
    for kind in tasks.KINDS:
        (root / kind / "images").mkdir(parents=True)
        for index, colour in enumerate(COLOURS):
            Image.new("RGB", (64, 64) if index % 2 else (96, 32), colour).save(root / kind / "images" / f"{colour}.png")
    captions = [{"image": f"{c}.png", "captions": [f"a {c} picture", f"it is {c}"]} for c in COLOURS]
    answers = [{"image": f"{c}.png", "sentence": "It is red.", "label": str(c == "red").lower()} for c in COLOURS[:3]]
    answers += [{"image": f"{c}.png", "question": "which colour is it?", "answer": c, "candidates": list(COLOURS)} for c in COLOURS[3:]]
    for kind, rows in (("caption", captions), ("answer", answers)):
        for split in ("calibration", "test"):
            (root / kind / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    torch.manual_seed(0)
    tokenizer = train_tokenizer([*WORDS, *COLOURS] * 20, 330)
    config = OFAConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=3,
        decoder_layers=3,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=32,
        image_bucket_size=4,
        image_grids=[[2, 2], [1, 3]],
        stem="efficientnet-lite0",
        decomposed=True,
        dropout=0.0,
    )
    model = OFAForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in (*model.model.encoder.layers.parameters(), *model.model.decoder.layers.parameters()):
            parameter.add_(torch.randn(parameter.shape) * 0.2)
        strength = model.model.stem(torch.randn(1, 3, 64, 64)).std()
        model.model.encoder.image_proj.weight.div_(strength * 0.1)  # a random stem says next to nothing: let the pictures matter
    model.save_pretrained(root / "model")
    OFAProcessor.for_config(tokenizer, config).save_pretrained(root / "model")
    asker = Asker(*load_pair(str(root / "model")))
    said = asker.ask(Engine(asker.model, "never"), asker.prepare(tasks.load("caption", root / "caption", "test").items)).texts
    for row, text in zip(captions, said, strict=True):  # references that the model hits, so that there is a quality to keep
        row["captions"].append(text or "nothing")
    for split in ("calibration", "test"):
        (root / "caption" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, captions)))
    return root


@pytest.fixture(scope="session")
def asker(place):
    return Asker(*load_pair(str(place / "model")))
