"""The paper's ablations (tables 2 and 4) in small: the same short training with and without the layer-wise loss, and with a fused encoder.

Three models of the shipped shape learn easy-VQA from the same start for as many steps; exits are then calibrated and judged on the embedded
sample's questions. One JSON run for each goes to results/. Run: python recipes/shipped/ablation.py [--steps 300] [--only ARM]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from random import Random

import tomllib  # Python 3.11
import torch
from asked import EASY
from data import Questions
from quick import install
from streams import Batch
from vocabulary import encoder

from exitwise import Engine
from exitwise.bench import record, tasks
from exitwise.bench.ask import Asked, Asker
from exitwise.bench.choosing import ledger
from exitwise.calibrate.ledger import cheapest
from exitwise.models import shipped_path
from exitwise.models.ofa import OFAForConditionalGeneration, OFAProcessor
from exitwise.train import layerwise, warmup_cosine
from train import HERE, build_model

KEEP, MARGIN = 0.99, 1.0


@dataclass(frozen=True)
class Arm:
    """decomposed: image and text walk the encoder apart. weights: of the layers' losses."""

    name: str
    decomposed: bool
    weights: tuple[float, ...]


ARMS = (
    Arm("layer-wise", True, (1.0,) * 6),
    Arm("last-layer", True, (0.0,) * 5 + (1.0,)),
    Arm("fused", False, (1.0,) * 6),
)


def learn(arm: Arm, processor: OFAProcessor, steps: int, images: int = 8, each: int = 4) -> OFAForConditionalGeneration:
    """The arm's model after so many steps; the order of the data is the same for all arms."""
    config = tomllib.loads((HERE / "train.toml").read_text(encoding="utf-8"))
    model = build_model({**config["model"], "decomposed": arm.decomposed, "vocab_size": len(processor.tokenizer)}, seed=0)
    questions, draw = Questions(encoder(processor.tokenizer)), Random(0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 8e-4 * warmup_cosine(step, step / steps, 40)
        loss = objective(model, questions.batch(draw, images, each), each, arm.weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            print(f"{arm.name} {step}: {float(loss.detach()):.3f}", flush=True)
    return model.eval()


def objective(model: OFAForConditionalGeneration, batch: Batch, each: int, weights: tuple[float, ...]) -> torch.Tensor:
    """The loss of a batch by the model's own forward, which is the same for both kinds of encoder."""
    mask = (batch.source != model.config.pad_token_id).long()
    out = model(
        input_ids=batch.source, attention_mask=mask, image_features=batch.features.repeat_interleave(each, 0),
        decoder_input_ids=batch.decoder_input, output_hidden_states=True, use_cache=False,
    )  # fmt: skip
    return layerwise(out.decoder_hidden_states[1:], model.readout, batch.labels, weights=list(weights), reduction="mean")


def judge(arm: Arm, asker: Asker, splits: dict[str, list[Asked]]) -> dict[str, object]:
    """Accuracy by decoder depth, and what exits save and keep: chosen on the one split, judged on the other."""
    engine = Engine(asker.model, "mue", decoder_scope="last", decompose=arm.decomposed)
    books = {name: ledger(asker, engine, items) for name, items in splits.items()}
    found = cheapest(books["calibration"], KEEP, margin=MARGIN, tied=not arm.decomposed)
    test = books["test"]
    quality, saved = test.judge(test.depths(found.settings))
    by_depth = [100 * test.static(image=6, text=6, decoder=depth)[0] for depth in range(1, 7)]
    depths = {stream: float(depth.double().mean()) for stream, depth in test.depths(found.settings).items()}
    return {
        "accuracy_full": 100 * test.full, "accuracy_by_decoder_depth": by_depth, "kept": quality / test.full, "etr": saved, "depth": depths,
        "settings": found.settings, "items": test.rows, "calibration_items": books["calibration"].rows,
    }  # fmt: skip


def main() -> None:
    """All arms in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--only", choices=[arm.name for arm in ARMS], help="one of the three; without it all, in turn")
    parser.add_argument("--out", type=Path, default=Path("results"))
    given = parser.parse_args()
    install()
    processor = OFAProcessor.from_pretrained(shipped_path())
    for arm in [arm for arm in ARMS if given.only in (None, arm.name)]:
        with record.run(
            given.out, f"ablation-{arm.name}", {"steps": given.steps, "decomposed": arm.decomposed, "weights": arm.weights}, 0
        ) as run:
            asker = Asker(learn(arm, processor, given.steps), processor)
            splits = {
                split: asker.prepare([item for item in tasks.sample("answer", split).items if item.group == EASY])
                for split in ("calibration", "test")
            }
            run.update(judge(arm, asker, splits))
        print(arm.name, {name: run[name] for name in ("accuracy_full", "kept", "etr", "accuracy_by_decoder_depth")}, flush=True)


if __name__ == "__main__":
    main()
