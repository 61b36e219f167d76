"""Our figures are those of the official scorers; what of them cannot run is named with its reason, and nothing is fetched."""

import importlib.util
import os
import shutil
import socket

import pytest

from exitwise.bench import captioned, official, overlap, tasks
from exitwise.bench.metrics import bleu, cider, words
from exitwise.errors import InputError

needed = pytest.mark.skipif(
    importlib.util.find_spec(official.PACKAGE) is None or shutil.which("java") is None, reason="needs exitwise[scorers] and Java"
)
ODD = ["", "...", "A dog's t-shirt isn't red.", "Hello\u2028there | a ||| b", "Caf\u00e9 \u2014 2 men, 3.5 miles; one-way", "the the the"]


@pytest.fixture(scope="module")
def sample():
    """Five captions of each embedded picture: the first is the candidate, the others are the references."""
    texts = [item.references for item in tasks.sample("caption", "test").items]
    return [each[0] for each in texts], [each[1:] for each in texts]


@pytest.fixture(scope="module")
def found(sample):
    """The official figures of those, and of odd captions; without METEOR, which needs ten seconds to begin."""
    said, references = sample
    odd = [ODD[place % len(ODD)] for place in range(len(said))]
    meteor = official.SCORERS.pop("METEOR")
    try:
        return {"people": said, "odd": odd}, official.judged({"people": said, "odd": odd}, references)
    finally:
        official.SCORERS["METEOR"] = meteor


@needed
@pytest.mark.parametrize("way", ["people", "odd"])
def test_ours_are_the_official_figures(sample, found, way):
    """To 1e-6. BLEU: the official one adds 1e-9 to the counts it divides by, below 1e-8 of a figure here; the others: order of sums."""
    ways, figures = found
    _, references = sample
    ours, theirs = captioned.own(ways[way], references), figures.of[way]
    for name in ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-6), name
    assert theirs["CIDEr"] > 0 and theirs["ROUGE-L"] > 1


@needed
def test_the_official_cider_is_cider_d(sample, found):
    """Clipped and with a penalty of length, whatever its name: plain CIDEr is elsewhere."""
    said, references = sample
    plain = cider(said, references, clipped=False).score
    assert abs(plain - found[1].of["people"]["CIDEr"]) > 1


@needed
@pytest.mark.skipif("EXITWISE_METEOR" not in os.environ, reason="loads paraphrases for ten seconds: set EXITWISE_METEOR")
def test_ours_differ_from_official_meteor_by_design():
    """A synonym counts as a word there and as nothing in ours: 'automobile' and 'tree' for 'car' are one to ours."""
    said = {"synonym": {0: ["a dog by the automobile"]}, "other": {0: ["a dog by the tree"]}}
    theirs = official._meteor({0: ["a dog by the car"]}, said)
    ours = {way: overlap.meteor(lines[0], [["a dog by the car"]])[0] for way, lines in said.items()}
    assert theirs["synonym"][0] > theirs["other"][0] + 20 and ours["synonym"] == ours["other"]


@needed
def test_words_are_split_as_the_official_program_splits_them(sample):
    """On each of the sample's captions and the odd ones; round brackets are the one known difference: the program keeps them as words."""
    texts = [*sample[0], *(text for each in sample[1] for text in each), *ODD]
    for text, split in zip(texts, official.tokenised(texts), strict=True):
        assert words(text.replace("|", " ")) == split.split()
    assert official.tokenised(["a (b)"]) == ["a -lrb- b -rrb-"] and words("a (b)") == ["a", "b"]


@needed
def test_spice_is_named_as_missing_and_no_connection_is_opened(found, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    if "SPICE" not in official.missing():
        pytest.skip("SPICE's files are here")
    assert "stanford-corenlp-3.6.0.jar" in official.missing()["SPICE"] and "spice/lib" in found[1].missing["SPICE"]
    out = official.Figures({"way": {}}, official.missing())
    assert set(out.missing) == {"SPICE"} and set(found[1].of["people"]) == set(official.NAMES) - {"SPICE", "METEOR"}


def test_without_the_extra_or_java_all_are_missing_and_the_run_does_not_begin(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert set(official.missing()) == set(official.NAMES)
    with pytest.raises(InputError, match="No official scorer can run.*--official"):
        captioned.wanted("caption")
    monkeypatch.setattr(official, "PACKAGE", "a_package_that_is_not_there")
    assert "exitwise[scorers]" in official.missing()["BLEU-1"]


def test_answers_have_no_caption_to_judge():
    with pytest.raises(InputError, match="'answer'"):
        captioned.wanted("answer")


@needed
def test_a_scorer_that_fails_is_named_and_the_others_go_on(monkeypatch):
    def broken(truths, ways):
        raise OSError("no memory")

    monkeypatch.setitem(official.SCORERS, "METEOR", broken)
    found = official.judged({"way": ["a dog runs"]}, [["a dog"]])
    assert "no memory" in found.missing["METEOR"] and "METEOR" not in found.of["way"]
    assert found.of["way"]["BLEU-1"] == pytest.approx(bleu(["a dog runs"], [["a dog"]])[0], abs=1e-6)


def test_the_table_shows_both_with_what_is_missing_in_80_columns():
    run = {"rows": [{"key": "full", "label": "full depth"}, {"key": "mue", "label": "MuE, joint exit"}]}
    said, references = {"full": ["a dog runs", "two cats"], "mue": ["a dog", "cats"]}, [["a dog runs"], ["two cats sit"]]
    captioned.fill(run, said, references, False)
    assert run["rows"][0]["bleu"] == list(bleu(said["full"], references)) and set(run["missing"]) == {"METEOR", "SPICE"}
    run["rows"][1]["official"] = {"BLEU-1": 12.34}
    text = captioned.render(run)
    assert max(map(len, text.splitlines())) <= 80 and "missing: SPICE" in text
    line = next(line for line in text.splitlines() if line.strip().startswith("official"))
    assert line.split() == ["official", "12.3"] + ["-"] * 7
    assert captioned.render({"rows": [{"label": "full depth"}]}) == ""
