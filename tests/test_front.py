"""Budgets, fronts and prices: by hand, against a search that looks at everything, and against counted MACs of real runs."""

import itertools
import json

import numpy as np
import pytest
import torch
from tests.ledgers import LAYERS, Live, source

from exitwise import Engine
from exitwise.calibrate.budget import NEVER, proposals, search
from exitwise.calibrate.front import _Search, front, pareto, spend, within
from exitwise.calibrate.ledger import DECODER, grid, thresholds_of
from exitwise.calibrate.prices import Prices
from exitwise.calibrate.profile import prices_of
from exitwise.cost import count_macs, etr
from exitwise.errors import CalibrationError, KnobError
from exitwise.families import ofa
from exitwise.trace import Trace

ETR = Prices.of_layers(LAYERS, [DECODER])


def test_the_front_by_hand():
    """By rising cost, each better than all before; of two alike in cost the better, of two alike in both one."""
    cost, quality = np.array([1.0, 0.5, 0.5, 0.2, 0.9, 1.0]), np.array([0.9, 0.7, 0.8, 0.3, 0.8, 0.9])
    assert pareto(cost, quality) in ([3, 2, 0], [3, 2, 5])


def test_prices_by_hand():
    """Two rows leave the encoder at 1 and 3 of 3; the decoder runs 2 steps at 1 and 4, and one step at 2."""
    prices = Prices("ms", {"text": (1.0, 2.0, 4.0), DECODER: (1.0, 1.0, 1.0, 10.0)}, 0.5, (DECODER,), "a machine")
    trace = Trace({"text": torch.tensor([1, 3]), DECODER: torch.tensor([[1, 4], [2, 0]])}, dict(LAYERS))
    assert prices.of_trace(trace) == pytest.approx((2 * 0.5 + 1 + 7 + 1 + 13 + 2) / 2)
    assert Prices.from_dict(json.loads(json.dumps(prices.to_dict()))) == prices
    one = Trace({"text": torch.tensor([1, 3]), DECODER: torch.tensor([[1], [4]])}, dict(LAYERS), tokens={"text": torch.ones(2)})
    whole = Trace({"text": torch.tensor([3, 3]), DECODER: torch.tensor([[4], [4]])}, dict(LAYERS))
    assert ETR.of_trace(one) / ETR.of_trace(whole) == pytest.approx(1 - etr(one)) == pytest.approx((2 + 2.5) / 7)
    with pytest.raises(CalibrationError, match="negative or not finite"):
        Prices("ms", {"text": (1.0, float("nan"))})
    with pytest.raises(CalibrationError, match="nothing to save"):
        Prices("ms", {"text": (0.0, 0.0)})
    with pytest.raises(KnobError, match="joules"):
        Prices("joules", {"text": (1.0,)})


def test_the_best_within_a_budget_is_the_best_there_is():
    book = source(300, 0)
    prices = Prices("macs", {"text": (5.0, 1.0, 1.0), DECODER: (1.0, 2.0, 3.0, 4.0)}, 1.0, (DECODER,))
    seen = []
    for choice, last in itertools.product(grid(book, 3), thresholds_of(book.decoder, 4, 25)):
        depths = book.depths({**choice, DECODER: last})
        ran = {s: torch.tensor([(d >= n).sum() for n in range(1, LAYERS[s] + 1)]) for s, d in depths.items()}
        seen.append((prices.whole(ran, 300) / 300 / 18, float(book.marks(depths).mean())))
    for budget in (0.6, 0.8, 1.0):
        found = within(book, budget, prices, encoder=3, decoder=25)
        assert found.quality == max(quality for cost, quality in seen if cost <= budget + 1e-9)
        assert found.cost["share"] == pytest.approx(min(c for c, q in seen if q == found.quality)) and found.cost["share"] <= budget + 1e-9
        assert (found.quality, found.etr) == book.judge(book.depths(found.settings))
    points = front(book, prices, 3, 25)
    assert len(points) > 5 and points == found.front
    for before, after in itertools.pairwise(points):
        assert before["cost"] < after["cost"] and before["quality"] < after["quality"]
    with pytest.raises(CalibrationError, match="the cheapest costs"):
        within(book, 0.1, prices)
    for wrong in (0.0, 1.5, float("nan")):
        with pytest.raises(CalibrationError, match="budget="):
            within(book, wrong, prices)


@pytest.mark.parametrize("trials", [3, 8, 24])
def test_runs_are_no_more_than_were_allowed_and_a_budget_is_kept(trials):
    book = source(300, 1)
    run = Live(book)
    found = spend(lambda s, r: run(s, r, range(300)), range(300), LAYERS, 0.6, ETR, lambda out, _: out, trials)
    assert len(run.ran) == len(found.tried) <= trials
    depths = book.depths(found.settings)
    assert found.settings in run.ran and (found.quality, found.etr) == pytest.approx(book.judge(depths))
    assert found.cost["share"] == pytest.approx(1 - found.etr) and found.etr >= 0.4
    assert found.quality == max(t["quality"] for t in found.tried if t["cost"] <= 0.6)
    run.ran.clear()
    searched = search(lambda s, r: run(s, r, range(300)), range(300), LAYERS, 0.95, lambda out, _: out, trials)
    assert len(run.ran) == len(searched.tried) <= trials


def test_a_better_search_under_a_budget_finds_nearly_the_best():
    """24 live runs against the whole grid of a ledger: two points of a hundred at most are lost."""
    book = source(600, 2)
    run = Live(book)
    found = spend(lambda s, r: run(s, r, range(600)), range(600), LAYERS, 0.7, ETR, lambda out, _: out, 24)
    assert found.quality >= within(book, 0.7, ETR).quality - 0.02


def test_counted_prices_are_what_a_layer_less_saves():
    """MACs of whole runs, counted from outside, with one layer more and less: each stream's last two layers, to the unit."""
    torch.manual_seed(0)
    model, inputs = ofa.tiny()
    given = {k: v[:1] for k, v in inputs.items()} | {"decoder_input_ids": inputs["input_ids"][:1, :1]}
    prices = prices_of(Engine(model, "mue"), "macs", [lambda engine: engine.run(use_cache=False, **given).trace])

    def counted(**depths):
        with count_macs() as macs:
            Engine(model, "static", **depths).run(use_cache=False, **given)
        return macs.total

    for stream in ("image", "text", DECODER):
        for depth in (4, 3):
            assert prices.layers[stream][depth - 1] == counted(**{stream: depth}) - counted(**{stream: depth - 1}) > 0
    assert prices.fixed == counted() - sum(map(sum, prices.layers.values())) > 0
    assert prices.layers["image"][3] != prices.layers["text"][3] and prices.machine is None
    assert not [hook for m in model.modules() for hook in m._forward_hooks], "a hook was left behind"


def test_milliseconds_are_measured_here_and_say_where(monkeypatch):
    """A clock that moves by one with every look: a layer takes the one look between its two, whatever runs in it."""
    from exitwise.calibrate import profile

    torch.manual_seed(0)
    model, inputs = ofa.tiny()
    given = {k: v[:1] for k, v in inputs.items()} | {"decoder_input_ids": inputs["input_ids"][:1, :1]}
    calls = [lambda engine: engine.run(use_cache=False, **given).trace]
    looks = itertools.count()
    monkeypatch.setattr(profile, "_milliseconds", lambda: float(next(looks)))
    prices = prices_of(Engine(model, "mue", image=0.0), "ms", calls)
    assert set(sum(prices.layers.values(), ())) == {1.0} and prices.machine and "threads" in prices.machine
    assert prices.fixed == 2 * 12 + 1 - 12
    with pytest.raises(CalibrationError, match="nothing to measure"):
        prices_of(Engine(model, "mue"), "ms", [])
    assert prices_of(Engine(model, "mue"), "etr", []).layers["image"] == (0.5,) * 4
    joint = prices_of(Engine(model, "mue", decompose=False), "ms", calls)
    assert joint.layers["image"] == joint.layers["text"] == (0.5,) * 4, "streams that walk together share a layer's price"


@pytest.mark.parametrize("wish", [{"budget": 0.8}, {"keep": 0.5}])
def test_streams_that_leave_as_one_have_one_threshold(wish):
    """Of a joint exit: both streams at one threshold and one depth, and the cost that was foretold for them is what they cost."""
    torch.manual_seed(0)
    model, inputs = ofa.tiny()
    rows = [{k: v[i : i + 1] for k, v in inputs.items()} for i in (0, 1)] * 6
    engine = Engine(model, "mue", decompose=False)
    found = engine.calibrate(rows, trials=8, max_new_tokens=3, **wish)
    assert found.settings["image"] == found.settings["text"] == engine.settings_dict()["text"]
    assert {tuple(sorted(each["settings"])) for each in found.tried} == {("decoder", "image")}
    alone = [engine.with_settings(image=t["settings"]["image"], text=t["settings"]["image"], decoder=1.0) for t in found.tried]
    depths = [one.generate(**rows[0], max_new_tokens=3).trace.depth for one in alone]
    assert all(torch.equal(depth["image"], depth["text"]) for depth in depths)
    shallow = [t for t in found.tried if t["settings"]["decoder"] == NEVER and t["settings"]["image"] < NEVER]
    assert shallow and max(t["etr"] for t in shallow) > 0.25, "both streams at their least depth of four save three eighths"


def test_streams_that_leave_as_one_are_foretold_as_one():
    """Two layers a stream at 3 each, rows that leave after 1 and 2 of them: 1.5 layers of both, so 9 for two streams and 4.5 for one."""
    prices = Prices("macs", {"image": (3.0, 3.0), "text": (3.0, 3.0), DECODER: (1.0,)}, 0.0, (DECODER,))
    for together, cost in ((("image", "text"), 9.0), ((), 4.5)):
        search = _Search(lambda *_: None, [], None, prices, 1, None, together)
        assert search.foretold("image", torch.tensor([1, 2])) == pytest.approx(cost)
        assert search.foretold(DECODER, torch.tensor([1, 1])) == pytest.approx(1.0)


def test_a_stream_that_is_the_same_in_all_rows_may_leave_at_once():
    """A prompt is as sure in every row: of five layers it is offered every depth from the first one on, not from the second."""
    sure = torch.tensor([0.4, 0.7, 0.8, 0.95, float("nan")]).expand(9, 5)
    assert [mean for _, mean in proposals(sure, 5, 1, 9)] == [5, 4, 3, 2, 1]
    assert [mean for _, mean in proposals(sure, 5, 2, 9)] == [5, 4, 3, 2]


def test_never_is_one():
    assert NEVER == 1.0 and all(p["cost"] <= 1 + 1e-12 for p in front(source(100, 3), ETR))
