"""Why a figure beside a paper's need not equal it: what was judged, by which model, at which cost, in which words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..models.ofa.layouts import size_of
from . import paper

NEAR = 0.02  # of ETR
RULE = (
    "Rule: each row leaves by itself, by the mean cosine of its tokens, and keys and values of skipped layers are projected from the state "
    "that left; the paper states neither."
)
RELEASED = "Rule: the released code's, D1 to D5 (`exitwise methods mue`), items one by one as its scripts ask them."


def shape(model: Any) -> dict[str, Any]:
    """What is said of a model: its size by name where its shapes are an official one's, parameters, layers, and how its encoder is."""
    config = model.config
    return {
        "size": size_of(config), "parameters_m": round(sum(p.numel() for p in model.parameters()) / 1e6, 1), "width": config.d_model,
        "layers": [config.encoder_layers, config.decoder_layers], "decomposed": config.decomposed, "stem": config.stem,
    }  # fmt: skip


def sentences(run: Mapping[str, Any]) -> list[str]:
    """All that differs, the weightiest first. Each begins with a word and a colon."""
    return [
        *_data(run),
        *_model(run),
        *_other_models(run),
        *_rivals(run),
        *_missing(run),
        _thresholds(run),
        _rule(run),
        *_cost(run),
        *_figures(run),
    ]


def _data(run: Mapping[str, Any]) -> list[str]:
    task, theirs = run["task"], paper.read("mue")["data"][run["task"]["kind"]]
    told = "in" if run["config"]["add_caption"] else "not in"
    out = [
        f"Data: {task['items']} items of {task['folder']}, split {task['split']}; the paper's are {theirs['name']}, {theirs['test']}. "
        "Unless these are the same, compare shares of full depth, not figures."
    ]
    if task["kind"] == "answer":
        out.append(f"Prompt: the image's caption is {told} it. OFA's and MuE's scripts put it there (D6), so that their figures have it.")
    return out


def _model(run: Mapping[str, Any]) -> list[str]:
    mine, theirs = run["shapes"]["checkpoint"], paper.read("mue")["model"]
    encoder, decoder = mine["layers"]
    said = f"{mine['parameters_m']:g} M parameters, {encoder}+{decoder} layers of width {mine['width']}, stem {mine['stem']}"
    other = (
        "OFA-Base's shape" if mine["size"] == "base" else f"the paper's is {theirs['name']}, {theirs['parameters_m']} M, 6+6 of width 768"
    )
    return [f"Model: {said}; {other}. What can be left out is a matter of training, and the paper's weights were not published."]


def _other_models(run: Mapping[str, Any]) -> list[str]:
    """What stands in for a model that was trained otherwise."""
    present = {line["key"] for line in run["lines"] if line["measured"]}
    encoder = f"its encoder {'decomposed' if run['shapes']['checkpoint']['decomposed'] else 'fused'}"
    out = []
    if "base" in present and "base" not in run["shapes"]:
        out.append(f"OFA Base: this model at full depth, {encoder}; the paper's was fine-tuned without MuE. Give such a one with --base.")
    if "full" in present:
        out.append("Full depth: the paper's figures are those of its table 1, of a model fine-tuned without MuE.")
    if "joint" in present and "without-decomposition" not in run["shapes"]:
        out.append(
            f"No decomposition: both streams of this model, {encoder}, leave together; the paper's was trained with a fused one. Give such "
            "a one with --without-decomposition."
        )
    return out


def _rivals(run: Mapping[str, Any]) -> list[str]:
    """How other methods were run; the paper says little of how it ported them."""
    by_method = {line.method: line.label for line in paper.table("mue", run["table"]["number"], run["task"]["kind"]).lines if line.method}
    told = {name: about for name, about in run.get("rivals", {}).items() if name in by_method}
    if not told:
        return []
    out = [
        "Other methods: on this checkpoint, whose layers were taught to answer if it was trained for MuE, at thresholds that save what the "
        "paper's rows do. The paper does not describe its ports; in entailment it may have compared three answers, here all tokens compete."
    ]
    scored = [by_method[name] for name, about in told.items() if about.get("scored")]
    if scored:
        out.append(
            f"{', '.join(scored)}: the model's own norm and head read each layer. The papers' own train a head for each exit; here trained "
            "ramps speak for one token, and some answers of these items have several, scored together."
        )
    for name, about in told.items():
        if about["given"]:
            out.append(f"{by_method[name]}: exits as given, {about['parameters']:,} parameters.")
        elif about["trained"]:
            out.append(
                f"{by_method[name]}: {about['parameters']:,} parameters of exits, trained for {about['trained']} steps on {about['items']} "
                "items, the model frozen; its own norm and head read what they give."
            )
    return out


def _missing(run: Mapping[str, Any]) -> list[str]:
    """A sentence for each reason, with all rows that it holds for."""
    rows: dict[str, list[str]] = {}
    for line in run["lines"]:
        if line["reason"]:
            rows.setdefault(line["reason"], []).append(line["label"])
    return [f"Missing: {', '.join(labels)}; {reason}." for reason, labels in rows.items()]


def _thresholds(run: Mapping[str, Any]) -> str:
    preset, chosen = run["config"]["preset"], f"on the {run['task']['calibration']} calibration items"
    if any("depths" in line["paper"] for line in run["lines"]):
        return f"Thresholds: those under which image and text run the paper's mean depths, as shares of the layers, {chosen}."
    if preset in paper.read("mue")["thresholds"] and run["table"]["number"] != "3":
        source = "paper states" if preset == "paper" else "scripts state"
        return (
            f"Thresholds: those that the {source}. Paper and scripts disagree, and both were made for another model: the cost is another."
        )
    return f"Thresholds: the best {chosen} of those that save what the paper's row does; the paper does not say how it chose."


def _rule(run: Mapping[str, Any]) -> str:
    changed = ", ".join(f"{name}={value}" for name, value in run["config"]["knobs"].items())
    return (RELEASED if run["config"]["preset"] == "released" else RULE) + (f" But for {changed}." if changed else "")


def _cost(run: Mapping[str, Any]) -> list[str]:
    off = dict.fromkeys(line["label"] for line in run["lines"] if line["measured"] and _missed(line))
    return [f"Cost: more than {100 * NEAR:.0f} points off the paper's ETR on the judged items: {', '.join(off)}."] if off else []


def _missed(line: Mapping[str, Any]) -> bool:
    wanted = line["paper"].get("etr")
    return bool(wanted) and line["key"] != "tiny" and abs(line["measured"]["etr"]["streams"] - wanted) > NEAR


def _figures(run: Mapping[str, Any]) -> list[str]:
    out = [
        "ETR: image and text enter with their mean, the reading that fits all of the paper's tables; two others are in the record, and so "
        "are MACs and time, which save less: ETR counts layers only."
    ]
    if run["task"]["kind"] == "caption":
        out.append(
            f"Metrics: CIDEr-D and BLEU on this library's own words, {run['config']['beams']} beam(s). METEOR and SPICE: not measured. The "
            "paper's captions are of models trained for CIDEr (its stage two); OFA's scripts use 5 beams."
        )
    return out
