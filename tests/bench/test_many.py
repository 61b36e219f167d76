"""A folder of images through one engine: written as it goes, gone on with, and nothing lost to a bad image."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from exitwise.bench.ask import Asker
from exitwise.cli import app


@pytest.fixture
def photos(place, tmp_path):
    """The six pictures, in two folders."""
    folder = tmp_path / "photos"
    shutil.copytree(place / "caption" / "images", folder)
    (folder / "more").mkdir()
    (folder / "red.png").rename(folder / "more" / "red.png")
    return folder


def run(place, *args, code=0):
    result = CliRunner().invoke(app, ["run", str(place / "model"), *map(str, args)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


EARLY = ("--set", "image=-1", "--set", "decoder=-1")


def test_each_image_gets_what_it_gets_alone(place, photos, tmp_path):
    out = tmp_path / "said" / "captions.jsonl"
    told = json.loads(run(place, "--images", photos, "--out", out, *EARLY, "--rows", 4, "--json").stdout)
    assert told == {"out": str(out), "written": 6, "known": 0, "skipped": 0}
    assert [line["image"] for line in lines(out)] == ["black.png", "blue.png", "green.png", "more/red.png", "white.png", "yellow.png"]
    for line in lines(out):
        alone = json.loads(run(place, "--image", photos / line["image"], *EARLY, "--json").stdout)
        assert line["text"] == alone["answer"] and [d for _, d in line["tokens"]] == [t["depth"] for t in alone["tokens"]]
        assert line["depth"]["image"] == alone["trace"]["depth"]["image"][0] == 1 and line["depth"]["text"] == 3


def test_a_job_that_was_stopped_goes_on(place, photos, tmp_path, monkeypatch):
    out, asked, plain = tmp_path / "said.jsonl", [], Asker.ask

    def ask(self, engine, items, *args, **more):
        asked.append([one.item.name for one in items])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return plain(self, engine, items, *args, **more)

    monkeypatch.setattr(Asker, "ask", ask)
    with pytest.raises(BaseException):  # noqa: B017 - however the runner hands on the interrupt
        run(place, "--images", photos, "--out", out, "--rows", 2)
    assert len(lines(out)) == 2
    with out.open("a", encoding="utf-8") as file:
        file.write('{"image": "gre')  # torn off in the middle of a line
    assert json.loads(run(place, "--images", photos, "--out", out, "--rows", 2, "--json").stdout)["known"] == 2
    assert asked[2:] == [["green.png", "red.png"], ["white.png", "yellow.png"]]
    assert len({line["image"] for line in lines(out)}) == len(lines(out)) == 6


def test_a_bad_image_is_counted_and_named_and_costs_nothing_else(place, photos, tmp_path):
    (photos / "blue.png").write_bytes((photos / "blue.png").read_bytes()[:40])
    out = tmp_path / "said.jsonl"
    said = run(place, "--images", photos, "--out", out, "--strict", code=1)
    assert "blue.png" in said.stderr and "1 left out" in said.stdout and len(lines(out)) == 5
    run(place, "--images", photos, "--out", out)  # without --strict, and nothing to do but the bad one


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--images", "PHOTOS"), "go together"),
        (("--out", "OUT"), "go together"),
        (("--images", "NOWHERE", "--out", "OUT"), "does not exist"),
        (("--images", "EMPTY", "--out", "OUT"), "holds no image"),
    ],
)
def test_what_is_wrong_is_said(place, photos, tmp_path, args, told):
    (tmp_path / "empty").mkdir()
    places = {"PHOTOS": photos, "OUT": tmp_path / "o.jsonl", "NOWHERE": tmp_path / "nowhere", "EMPTY": tmp_path / "empty"}
    assert told in run(place, *[places.get(arg, arg) for arg in args], code=2).stderr


def test_answers_of_two_settings_are_never_mixed(place, photos, tmp_path):
    out = tmp_path / "said.jsonl"
    run(place, "--images", photos, "--out", out)
    before = out.read_text(encoding="utf-8")
    refused = run(place, "--images", photos, "--out", out, *EARLY, code=2).stderr
    assert "another settings" in refused and "said.jsonl" in refused and out.read_text(encoding="utf-8") == before
    question = ("--prompt", "it is red true or false?", "--candidates", "true,false")
    assert "another candidates, kind" in run(place, "--images", photos, "--out", out, *question, code=2).stderr
