"""A user's texts with labels: both forms, names and numbers, and what is refused with file and line."""

import json

import pytest

from exitwise.bench.texts import read, split_file
from exitwise.errors import InputError

NAMES = {0: "negative", 1: "positive"}


def write(file, *lines):
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def test_both_forms_and_both_ways_to_name_a_class(tmp_path):
    rows = [{"text": "fine", "label": "positive"}, {"sentence": "poor", "label": 0}, {"text": "good", "label": 1.0}]
    jsonl = write(tmp_path / "a.jsonl", *map(json.dumps, rows))
    tsv = write(tmp_path / "a.tsv", "sentence\tlabel", "fine\t1", 'a "poor\tnegative', "good\tpositive")
    assert [(r.first, r.label) for r in read(jsonl, NAMES)] == [("fine", 1), ("poor", 0), ("good", 1)]
    assert [(r.first, r.label) for r in read(tsv, NAMES)] == [("fine", 1), ('a "poor', 0), ("good", 1)]
    assert len(read(tsv, NAMES, limit=2)) == 2


def test_pairs(tmp_path):
    file = write(tmp_path / "a.tsv", "sentence1\tsentence2\tlabel", "one\ttwo\t0")
    (row,) = read(file, NAMES)
    assert (row.first, row.second) == ("one", "two")


@pytest.mark.parametrize(
    ("name", "lines", "said"),
    [
        ("a.jsonl", ["{"], "a.jsonl:1.*not JSON"),
        ("a.jsonl", ["[]"], "a.jsonl:1.*object"),
        ("a.jsonl", ['{"text": "x", "label": "positive"}', '{"text": "x", "label": "great"}'], "a.jsonl:2.*great.*Allowed: negative"),
        ("a.jsonl", ['{"text": "", "label": 1}'], "a.jsonl:1.*no text"),
        ("a.jsonl", ['{"text": "x", "label": 2}'], "a.jsonl:1.*does not fit the model's head"),
        ("a.jsonl", [""], "holds no rows"),
        ("a.jsonl", ['{"text": "x", "label": 1}', '{"text": "x", "pair": "y", "label": 1}'], "rows with a pair and rows without"),
        ("a.tsv", ["text\tlabel", "x\t1\t2"], "a.tsv:2.*3 columns"),
    ],
)
def test_bad_rows_are_named(tmp_path, name, lines, said):
    with pytest.raises(InputError, match=said):
        read(write(tmp_path / name, *lines), NAMES)


def test_splits_are_found_by_name_and_by_custom(tmp_path):
    write(tmp_path / "dev.tsv", "x")
    write(tmp_path / "calibration.jsonl", "x")
    assert split_file(tmp_path, None, ("test", "dev")).name == "dev.tsv" and split_file(tmp_path / "dev.tsv", None, ()).name == "dev.tsv"
    assert split_file(tmp_path, "calibration", ()).name == "calibration.jsonl"
    with pytest.raises(InputError, match="no split train. It holds: calibration, dev"):
        split_file(tmp_path, None, ("train",))
    with pytest.raises(InputError, match="does not exist"):
        split_file(tmp_path / "none", None, ("train",))
