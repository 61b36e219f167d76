"""A Kangaroo adapter for a Llama: answers in the model's own words, then the adapter trained on them. Both steps go on where they were
stopped.

Run from the project's folder, with MODEL a folder that `from_pretrained` reads:
    python recipes/language/kangaroo.py answers MODEL --minutes 25
    python recipes/language/kangaroo.py train MODEL --depth 3 --minutes 40
Texts are looked for in .data/llm-eval and .data/glue; answers, checkpoints and the adapter go to .data/kangaroo.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from answers import Answerer, answer, write
from drafter import Drafting, Epochs, begin, judge, objective
from prompts import build
from written import Row, aim, read, shortlist

from exitwise.lm.adapter import AdapterConfig, save_adapter
from exitwise.train import Settings, train

LONGEST, MOST, ROWS = 900, 144, 96


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def asked(tokenizer: Any, data: Path, scale: float) -> list[tuple[str, list[int]]]:
    """(kind, ids) of every prompt in the model's chat format, in batches of like length: batch after batch mixes the kinds."""
    made = []
    for kind, text in build(data, scale=scale):
        chat = tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(chat, add_special_tokens=False)["input_ids"]
        if len(ids) <= LONGEST:
            made.append((kind, ids))
    made.sort(key=lambda pair: len(pair[1]))
    return made


def batches(prompts: list[tuple[str, list[int]]]) -> list[list[tuple[str, list[int]]]]:
    """Rows of like length together, fewer where they are long; the order is mixed, so that a run cut short has seen all lengths."""
    found, at = [], 0
    while at < len(prompts):
        rows = max(16, min(ROWS, 24_000 // (len(prompts[min(at + ROWS, len(prompts)) - 1][1]) + MOST)))
        found.append(prompts[at : at + rows])
        at += rows
    random.Random(0).shuffle(found)
    return found


def write_answers(given: argparse.Namespace) -> None:
    """Answers batch by batch until the time is over; files that are there are not made again."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval()
    folder = given.work / "answers"
    folder.mkdir(parents=True, exist_ok=True)
    answerer, began, tokens, spent = Answerer(model, LONGEST + MOST, ROWS), time.monotonic(), 0, 0.0
    todo = batches(asked(tokenizer, given.data, given.scale))
    tell(f"{sum(map(len, todo))} prompts in {len(todo)} batches, {sum(len(ids) for batch in todo for _, ids in batch)} prompt tokens")
    for number, batch in list(enumerate(todo))[given.turn :: given.beside]:
        file = folder / f"{number:04d}.safetensors"
        if file.exists():
            continue
        if time.monotonic() - began > 60 * given.minutes:
            break
        start = time.monotonic()
        rows = answer(answerer, [ids for _, ids in batch], MOST, tokenizer.eos_token_id)
        write(rows, file)
        file.with_suffix(".json").write_text(json.dumps([kind for kind, _ in batch]), encoding="utf-8")
        made = sum(len(row["last"]) for row in rows)
        tokens, spent = tokens + made, spent + time.monotonic() - start
        tell(f"{number}: {len(batch)} rows, {made} answer tokens; in all {tokens}, {tokens / spent:.0f}/s")


def words_of(file: Path, rows: Sequence[Row], count: int, vocabulary: int) -> torch.Tensor:
    """The short list, made once, so that a run that goes on with more answers keeps it."""
    if not file.exists():
        file.write_text(json.dumps(shortlist(rows, count, vocabulary).tolist()), encoding="utf-8")
    return torch.tensor(json.loads(file.read_text(encoding="utf-8")))


def learn(given: argparse.Namespace) -> None:
    """Trains the adapter on the answers that are there, in a folder of its own for each depth, and exports it at each checkpoint."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(given.threads)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval().requires_grad_(False)
    head, config = model.lm_head.weight.detach(), model.config
    learnt, held = read(given.work / "answers", given.depth)
    listed = words_of(given.work / f"shortlist-{given.words}.json", learnt, given.words, len(head))
    for rows in (learnt, held):
        aim(rows, listed, head)
    tokens = sum(len(row.last) for row in learnt)
    tell(f"{len(learnt)} answers of {tokens} tokens to learn from, {len(held)} of {sum(len(row.last) for row in held)} held out")
    form = AdapterConfig(
        config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim,
        config.rope_parameters["rope_theta"], config.rms_norm_eps, config.intermediate_size if given.ffn else 0, given.depth,
    )  # fmt: skip
    torch.manual_seed(0)
    drafting = Drafting(begin(model, form, given.copied), head[listed].clone())
    del model
    batches = Epochs(learnt, listed, given.rows)
    tell(f"{batches.each} batches an epoch; untrained: {json.dumps(judge(drafting, held[:40], listed))}")
    name = f"run-{given.depth}{'-ffn' if given.ffn else ''}{given.tag}"
    settings = Settings(
        given.work / name, seconds=60 * given.minutes, lr=given.lr, warmup=given.warmup, betas=(0.9, 0.95), weight_decay=0.0,
        save_every_s=120, validate_every_s=given.judge_every, average=0.995, learnt={"words": given.words, "ffn": given.ffn, "rows":
        given.rows},
    )  # fmt: skip
    if given.export is None:
        train(drafting, batches, objective, settings, lambda m: judge(m, held[:40], listed))
        return

    def export(trained: Any) -> None:
        trained.eval()
        figures = judge(trained, held, listed)
        tell(json.dumps(figures))
        save_adapter(trained.adapter, given.export, listed, {"held_out": figures, "answer_tokens": tokens, "model": given.model.name})

    train(drafting, batches, objective, settings, lambda m: judge(m, held[:40], listed), export)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["answers", "train"])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, default=Path(".data"))
    parser.add_argument("--work", type=Path, default=Path(".data/kangaroo"))
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--scale", type=float, default=1.0, help="how many prompts, as a multiple of 3,600")
    parser.add_argument("--beside", type=int, default=1, help="processes that write answers into the same folder, one thread each")
    parser.add_argument("--turn", type=int, default=0, help="which of them this one is, from 0")
    parser.add_argument("--depth", type=int, default=3, help="layers that run before the adapter")
    parser.add_argument("--ffn", action="store_true", help="a feed-forward net in the adapter, which the paper has not")
    parser.add_argument("--words", type=int, default=8192, help="the short list of the vocabulary that is drafted from")
    parser.add_argument("--rows", type=int, default=16, help="answers in a batch")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--copied", action="store_true", help="begin as the model's layer after the depth, and not with small random weights"
    )
    parser.add_argument("--warmup", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--judge-every", type=float, default=60, help="seconds between two looks at the answers held out")
    parser.add_argument("--export", type=Path, help="where the adapter is written at each checkpoint, such as .data/kangaroo/adapter")
    parser.add_argument("--tag", default="", help="a name for a run beside others of the same depth")
    given = parser.parse_args()
    if not 0 <= given.turn < given.beside:
        parser.error(f"--turn {given.turn} is none of {given.beside} processes. Give 0 to {given.beside - 1}, each once.")
    (write_answers if given.step == "answers" else learn)(given)


if __name__ == "__main__":
    main()
