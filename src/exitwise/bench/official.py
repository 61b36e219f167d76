"""Captions judged by the official scorers of COCO's captions, where they are installed and can run; and which cannot, and why.

They are those of the package `pycocoevalcap`, the extra `scorers`, and need Java: the Penn Treebank's splitting of words, before all of
them, and METEOR 1.5 are programs in it. SPICE wants Stanford's CoreNLP besides, which that package would fetch on its first call. Nothing
here opens a connection: SPICE runs where these files lie already, and is named as missing where they do not.

Ours (`metrics`, `overlap`) give the same BLEU, ROUGE-L and CIDEr to 1e-6: the official CIDEr is CIDEr-D, and words are split alike, save
that round brackets stay as words there (4 of 5555 captions of Flickr8k and COCO were split otherwise). METEOR is another measure: see
`overlap.meteor`.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean

from ..errors import InputError

PACKAGE = "pycocoevalcap"
NAMES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE")
PARSER = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")  # what SPICE's parser of scenes is made of
Lines = dict[int, list[str]]  # item -> its captions, words with one space between, as the package wants them
Ways = Mapping[str, Lines]
Found = dict[str, list[float]]  # way -> figures, of BLEU four


@dataclass(frozen=True)
class Figures:
    """of: way -> scorer -> figure in 0..100 (CIDEr: 100 times the usual scale). missing: scorer -> why, and what to do."""

    of: dict[str, dict[str, float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def missing() -> dict[str, str]:
    """Scorers that cannot run on this machine -> why, and what to do; empty where all can. Nothing is started and nothing fetched."""
    if importlib.util.find_spec(PACKAGE) is None:
        return dict.fromkeys(NAMES, "the extra is not installed. Install exitwise[scorers].")
    if shutil.which("java") is None:
        return dict.fromkeys(NAMES, "Java is not on the path: it splits the words for all of them. Install a Java runtime (8 or later).")
    absent = [name for name in PARSER if not (_package() / "spice" / "lib" / name).is_file()]
    if not absent:
        return {}
    why = (
        f"{' and '.join(absent)} not there: the parser of scenes is no part of the package. Put the two files from Stanford's CoreNLP of "
        f"2015-12-09 (version 3.6.0) into the folder spice/lib of {PACKAGE}."
    )
    return {"SPICE": why}


def required() -> None:
    """Raises InputError where none of the official scorers can run."""
    absent = missing()
    if len(absent) == len(NAMES):
        raise InputError(f"No official scorer can run: {absent[NAMES[0]]} Or leave --official out: our own figures need neither.")


def judged(said: Mapping[str, Sequence[str]], references: Sequence[Sequence[str]]) -> Figures:
    """What the official scorers give the captions of several ways (way -> a caption an item) against the same references.

    Words are split once for all ways. A scorer that fails is named in `missing` with its message, and the others go on: a long run is not
    lost to one of them.
    Raises InputError where none can run, or a way has not one caption for each item.
    """
    required()
    for way, texts in said.items():
        if len(texts) != len(references) or not texts or not all(references):
            raise InputError(
                f"{way}: {len(texts)} captions were given for {len(references)} items. Give one for each, and references for all."
            )
    try:
        split = iter(tokenised([*(text for texts in said.values() for text in texts), *(text for texts in references for text in texts)]))
    except (OSError, ValueError) as problem:
        return Figures({way: {} for way in said}, dict.fromkeys(NAMES, str(problem)))
    ways = {way: {item: [next(split)] for item in range(len(texts))} for way, texts in said.items()}
    truths = {item: [next(split) for _ in texts] for item, texts in enumerate(references)}
    out = Figures({way: {} for way in said}, missing())
    for name, scorer in SCORERS.items():
        if name not in out.missing:
            _into(out, NAMES[:4] if name == "BLEU" else (name,), partial(scorer, truths, ways))
    return out


def _into(out: Figures, names: Sequence[str], judge: Callable[[], Found]) -> None:
    """The figures of one scorer for all ways, or its names among those that are missing."""
    try:
        found = judge()
    except (OSError, ValueError, subprocess.SubprocessError) as problem:
        out.missing.update(dict.fromkeys(names, f"it was started and failed ({type(problem).__name__}: {problem})."))
        return
    for way, values in found.items():
        out.of[way].update(zip(names, values, strict=True))


def tokenised(texts: Sequence[str]) -> list[str]:
    """Each text in lower-case words as the Penn Treebank splits them, without punctuation, one space between: what the scorers read.

    The package's own program and list of punctuation, called here so that nothing is written into its folder.
    """
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS, STANFORD_CORENLP_3_4_1_JAR

    jar = _package() / "tokenizer" / STANFORD_CORENLP_3_4_1_JAR
    lines = "\n".join(" ".join(text.replace("|", " ").split()) for text in texts)  # one line each; METEOR's protocol knows "|||"
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    command += ["-encoding", "UTF-8"]
    done = subprocess.run(command, input=lines + "\n", capture_output=True, encoding="utf-8", check=False)
    split = done.stdout.split("\n")[:-1]
    if done.returncode or len(split) != len(texts):
        said = done.stderr.strip().splitlines()[-1:] or [f"{len(split)} lines came back for {len(texts)}"]
        raise InputError(f"The program that splits words failed: {said[0]}. Mend the Java runtime, or leave --official out.")
    return [" ".join(word for word in line.split() if word not in PUNCTUATIONS) for line in split]


def _bleu(truths: Lines, ways: Ways) -> Found:
    from pycocoevalcap.bleu.bleu import Bleu

    return {way: [100.0 * value for value in Bleu(4).compute_score(truths, lines, verbose=0)[0]] for way, lines in ways.items()}


def _meteor(truths: Lines, ways: Ways) -> Found:
    """One program for all ways: it takes seconds to begin. It is ended here, because the package leaves its pipes open."""
    from pycocoevalcap.meteor.meteor import Meteor

    judge = Meteor()
    with judge.meteor_p:
        try:
            return {way: [100.0 * judge.compute_score(truths, lines)[0]] for way, lines in ways.items()}
        finally:
            judge.meteor_p.kill()


def _rouge(truths: Lines, ways: Ways) -> Found:
    from pycocoevalcap.rouge.rouge import Rouge

    return {way: [100.0 * float(Rouge().compute_score(truths, lines)[0])] for way, lines in ways.items()}


def _cider(truths: Lines, ways: Ways) -> Found:
    """CIDEr-D, whatever the package calls it. On its usual scale 1.10 is 110 here."""
    from pycocoevalcap.cider.cider import Cider

    return {way: [100.0 * float(Cider().compute_score(truths, lines)[0])] for way, lines in ways.items()}


def _spice(truths: Lines, ways: Ways) -> Found:
    """Only where its files lie there: the constructor would fetch them. Items without a figure (nothing to parse) count as 0."""
    from pycocoevalcap.spice.spice import Spice

    found = {way: [each["All"]["f"] for each in Spice().compute_score(truths, lines)[1]] for way, lines in ways.items()}
    return {way: [100.0 * fmean(0.0 if value != value else value for value in values)] for way, values in found.items()}


SCORERS: dict[str, Callable[[Lines, Ways], Found]] = {"BLEU": _bleu, "METEOR": _meteor, "ROUGE-L": _rouge, "CIDEr": _cider, "SPICE": _spice}


def _package() -> Path:
    """The folder of the package."""
    found = importlib.util.find_spec(PACKAGE)
    assert found is not None and found.submodule_search_locations
    return Path(next(iter(found.submodule_search_locations)))
