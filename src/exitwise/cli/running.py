"""`exitwise run`: one image or text through a model with exits, and where everything left."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .saying import NOT_MET, as_json, guarded, note, show

if TYPE_CHECKING:
    from ..engine import Engine
    from .asking import Question, Reply

EARLY, MIDDLE, LATE = "bold green", "yellow", "red"
SHARES = (0.4, 0.75)  # of the layers, up to which a depth is early, or in the middle
LM = "Language models"


@guarded
def run(
    model: options.Model = "shipped",
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="The image.")] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The prompt or question. Captions of the unified model need none.")
    ] = None,
    task: Annotated[options.Kind | None, typer.Option(help="Without it: 'answer' if there are --candidates, else 'caption'.")] = None,
    candidates: Annotated[str | None, typer.Option(metavar="A,B,...", help="Answers to choose among.")] = None,
    method: options.Method = None,
    preset: options.Preset = None,
    exits: options.Exits = None,
    knobs: options.Set = None,
    beams: options.Beams = 1,
    longest: Annotated[
        int | None,
        typer.Option("--longest", "--max-new-tokens", min=1, help="Most new tokens. Without it: 128 of a language model, else 20."),
    ] = None,
    bpe: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The vocabulary of an official OFA checkpoint, if it does not lie beside it.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Ask the same about every image in it; the answers go to --out.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON lines for --images; one that was begun goes on.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Images of a batch, with --images.")] = 16,
    strict: Annotated[bool, typer.Option("--strict", help="End with 1 if an image was left out.")] = False,
    adapter: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A trained adapter, for --method kangaroo.", rich_help_panel=LM)
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Draw tokens, at this temperature.", rich_help_panel=LM)] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw among the likeliest so many.", rich_help_panel=LM)] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw among the likeliest with this probability.", rich_help_panel=LM)] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1: tokens that were said are less likely.", rich_help_panel=LM)
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End after this text. May be repeated.", rich_help_panel=LM)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of tokens that are drawn.", rich_help_panel=LM)] = 0,
    raw: Annotated[bool, typer.Option("--raw", help="The prompt as it is, without the chat template.", rich_help_panel=LM)] = False,
    macs: Annotated[
        bool, typer.Option("--macs/--no-macs", help="Write the text a second time, to count its MACs.", rich_help_panel=LM)
    ] = True,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A page with a heat map of tokens and depths.", rich_help_panel=LM)
    ] = None,
    as_object: options.Json = False,
) -> None:
    """Ask a model once, and show the depth at which each stream and each token left; or about a folder of images.

    The shipped model uses the exits that come with it. Any other needs --exits
    or --set: without them all thresholds are 1 and nothing leaves early.

    A language model (a folder, a GGUF file, a name on the hub) continues the
    prompt, each token in the colour of its depth; Ctrl-C keeps what is there.

    \b
    Examples:
      exitwise run --image dog.jpg --set image=0.95 --set decoder=0.9
      exitwise run --image shapes.png --prompt "a box is red true or false?"
                   --candidates true,false --exits FOLDER
      exitwise run MODEL --image dog.jpg --method static --set decoder=2 --json
      exitwise run MODEL --image dog.jpg --preset released --set image=0.99
      exitwise run ofa_base.pt --bpe utils/BPE --image dog.jpg
      exitwise run --images photos --out captions.jsonl
      exitwise run SmolLM2.gguf --method layerskip --set depth=6
                   --prompt "Why is the sky blue?" --html sky.html
    """
    from .asking import LONGEST, Question, ask, candidates_of
    from .loading import engine_of, model_of, processor_of
    from .speaking import Wanted, refuse, speak, speaks

    choices, given = candidates_of(candidates), options.knobs(knobs)
    wanted = Wanted(adapter, temperature, top_k, top_p, repetition_penalty, tuple(stop or ()), seed, raw, macs, html)
    if speaks(model):
        _no_pictures(image, images, out, bpe, choices, task, beams)
        speak(model, prompt, method, exits, given, preset, wanted, longest, as_object)
        return
    refuse(model, wanted)
    kind = task.value if task is not None else "answer" if choices else "caption"
    loaded = model_of(model)
    saved = exits if exits is not None or method is not None or preset is not None or given else _shipped_exits(model, kind)
    engine = engine_of(loaded, method, saved, given, preset, kind, **({"decoder_scope": "last"} if kind == "answer" else {}))
    question, processor = Question(kind, image, prompt, choices, beams, longest or LONGEST), processor_of(model, loaded, bpe)
    if images is not None or out is not None:
        _folder(engine, processor, question, images, out, rows, strict, as_object)
        return
    reply = ask(engine, processor, question)
    if as_object:
        as_json(_body(model, kind, engine, reply))
        return
    show(*_tables(engine, reply))
    if engine.method_name == "mue" and all(engine.settings_dict().get(stream, 1.0) >= 1 for stream in engine.layers):
        note("All thresholds are 1, so nothing left early. Try --set image=0.9, or calibrate and give --exits FOLDER.")


def _no_pictures(
    image: Path | None, images: Path | None, out: Path | None, bpe: Path | None, choices: tuple[str, ...], task: object, beams: int
) -> None:
    """Raises KnobError where a language model is given what it cannot take."""
    from ..errors import KnobError

    asked = {"--image": image, "--images": images, "--out": out, "--bpe": bpe, "--candidates": choices, "--task": task}
    given = [name for name, value in asked.items() if value] + (["--beams"] if beams > 1 else [])
    if given:
        raise KnobError(f"{', '.join(given)} is not for a language model, which continues a --prompt. Leave it out.")


def _folder(
    engine: Engine, processor: Any, question: Question, images: Path | None, out: Path | None, rows: int, strict: bool, as_object: bool
) -> None:
    """All images of a folder; what was left out is named at the end."""
    from tqdm.auto import tqdm

    from ..errors import KnobError
    from .many import images_in, many

    if images is None or out is None or question.image is not None:
        raise KnobError("--images FOLDER and --out FILE go together, without --image.")
    with tqdm(total=len(images_in(images)), desc="images", unit="image", file=sys.stderr, mininterval=0.5) as bar:
        tally = many(engine, processor, question, images, out, rows, bar.update)
    for each in tally.skipped:
        note(f"left out: {each}")
    body = {"out": str(out), "written": tally.written, "known": tally.known, "skipped": len(tally.skipped)}
    if as_object:
        as_json(body)
    else:
        show(f"{tally.written} written, {tally.known} known from before, {len(tally.skipped)} left out: {out}")
    if tally.skipped and strict:
        raise typer.Exit(NOT_MET)


def _shipped_exits(model: str, kind: str) -> Path | None:
    """The exits that come with the shipped model for this kind of task, if they do."""
    from ..models import shipped_path
    from .loading import SHIPPED

    folder = shipped_path() / "exits" / kind / "mue"
    return folder if model == SHIPPED and (folder / "exitwise.json").is_file() else None


def _body(model: str, kind: str, engine: Engine, reply: Reply) -> dict[str, Any]:
    from ..cost import etr_readings

    return {
        "model": model,
        "task": kind,
        "method": engine.method_name,
        "settings": engine.settings_dict(),
        "answer": reply.text,
        "tokens": [{"text": text, "depth": depth} for text, depth in reply.tokens],
        "etr": etr_readings(reply.trace),
        "trace": reply.trace.to_dict(),
    }


def _tables(engine: Engine, reply: Reply) -> list[Any]:
    """The answer with a depth behind each token, then a row per stream, then what ran."""
    from rich.table import Table
    from rich.text import Text

    from ..cost import etr

    trace, layers = reply.trace, engine.layers
    said = Text(reply.text, style="bold")
    parts: list[Any] = [said]
    if reply.tokens:
        parts.append(_words(reply.tokens, layers.get("decoder", 1)))
    table = Table(title="where it left", title_justify="left")
    for name in ("stream", "depth", "of", ""):
        table.add_column(name, justify="right" if name in ("depth", "of") else "left")
    for stream, depth in trace.depth.items():
        n = trace.layers[stream]
        mean = trace.mean_depth(stream)
        several = len(set(depth[depth > 0].flatten().tolist())) > 1
        table.add_row(
            stream, f"{mean:.2f} mean" if several else f"{mean:.0f}", str(n), Text("█" * round(12 * mean / n), style=colour(mean, n))
        )
    calls = ", ".join(f"{path} {count}" for path, count in trace.calls.items())
    parts += [table, Text(f"layer calls that ran: {calls}"), Text(f"head evaluated: {trace.head_calls}")]
    parts.append(Text(f"ETR {100 * etr(trace):.0f} % (layers only: neither MACs nor time)"))
    return parts


def _words(tokens: list[tuple[str, int]], layers: int) -> Any:
    """Each token with its depth, coloured: early green, late red."""
    from rich.text import Text

    line = Text("tokens and depths: ")
    for text, depth in tokens:
        seen = "".join(letter if letter.isprintable() else "·" for letter in text.strip())
        line.append(seen or "·", style=colour(depth, layers))
        line.append(f"\u00a0{depth}  ", style="dim")  # a word and its depth stay on one line
    return line


def colour(depth: float, layers: int) -> str:
    """Early green, late red."""
    share = depth / layers
    return EARLY if share <= SHARES[0] else MIDDLE if share <= SHARES[1] else LATE
