"""The promises of `calibrate.guarantee`, and the bounds they rest on, hold: by hand arithmetic, and by simulation of known risks.

A simulated rate of wrong promises may exceed its level by 3 sqrt(level (1 - level) / repeats): three standard deviations of such a rate.
"""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from exitwise.calibrate import bounds, guarantee
from exitwise.calibrate.bounds import BOUNDS, p_values, rows_needed
from exitwise.calibrate.guarantee import PROCEDURES, Promise, front, promise
from exitwise.errors import CalibrationError, KnobError

PAGE = Path(__file__).parent.parent / "docs" / "guarantees.md"
RISK, LEVEL, REPEATS = 0.1, 0.05, 1000
GENERAL = [b for b in BOUNDS if b != "clopper_pearson"]


def allowed(level, repeats):
    return level + 3 * math.sqrt(level * (1 - level) / repeats)


def counted(rows, *losses):
    """(rows, settings): so many losses of 1 in each column, the first rows."""
    return np.arange(rows)[:, None] < np.array(losses)


# --- what is lost


def test_losses_by_hand():
    right = np.array([[1, 0], [1, 1], [0, 1]], dtype=bool)
    assert bounds.lost_answers([True, True, False], ~right).tolist() == [[True, False], [True, True], [False, False]]
    assert bounds.disagreement(["a", "b"], [["a", "c"], ["b", "b"]]).tolist() == [[False, True], [False, False]]
    assert bounds.metric_loss([0.8, 0.5], [[0.6, 0.9], [0.5, 0.0]], scale=0.4) == pytest.approx(np.array([[0.5, 0], [0, 1]]))


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        (np.zeros((0, 3)), "(0, 3)"),
        (np.zeros((3, 0)), "(3, 0)"),
        (np.zeros(3), "(3,)"),
        ([["a"]], "<U1"),
        ([[0.5, np.nan]], "NaN"),
        ([[0.5, 1.5]], "0.5..1.5"),
        ([[-0.1, 1]], "-0.1..1.0"),
    ],
)
def test_losses_that_are_none_are_refused(losses, says):
    for ask in (lambda: promise(losses, [1, 2, 3], RISK), lambda: bounds.hoeffding(losses, RISK)):
        with pytest.raises(CalibrationError, match=re.escape(says)):
            ask()


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"risk": 0}, KnobError, "risk=0"),
        ({"risk": 1.0}, KnobError, "risk=1.0"),
        ({"confidence": 1}, KnobError, "confidence=1"),
        ({"bound": "bernstein"}, KnobError, "hoeffding_bentkus"),
        ({"procedure": "holm"}, KnobError, "bonferroni"),
        ({"cost": [1, 2, 3]}, CalibrationError, "(3,)"),
        ({"cost": [1, math.inf]}, CalibrationError, "finite"),
        ({"cost": np.ones((4, 2))}, CalibrationError, "split"),
        ({"losses": [[0.0, 0.5]] * 4, "bound": "clopper_pearson"}, CalibrationError, "0 or 1"),
        ({"losses": np.zeros((2, 2)), "procedure": "split"}, CalibrationError, "2 rows"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(wrong, error, says):
    with pytest.raises(error, match=re.escape(says)):
        promise(**{"losses": np.zeros((4, 2)), "cost": [2, 1], "risk": RISK, **wrong})


def test_shapes_and_scales_that_do_not_fit_are_refused():
    with pytest.raises(CalibrationError, match=r"\(2,\) and \(3, 1\)"):
        bounds.disagreement([1, 2], [[1], [2], [3]])
    with pytest.raises(KnobError, match="scale=0"):
        bounds.metric_loss([1.0], [[1.0]], scale=0)
    for lose in (bounds.lost_answers, bounds.metric_loss, bounds.disagreement):  # a NaN is neither right, nor equal, nor a score
        with pytest.raises(CalibrationError, match="NaN"):
            lose([1.0, math.nan], [[1.0], [1.0]])


# --- how it is bounded


def test_bounds_by_hand():
    assert bounds.hoeffding(counted(100, 5, 10, 20), 0.1) == pytest.approx([math.exp(-0.5), 1, 1])
    assert bounds.clopper_pearson(counted(59, 0), 0.05) == pytest.approx([0.95**59])
    assert bounds.clopper_pearson(counted(10, 1, 10), 0.3) == pytest.approx([0.7**10 + 10 * 0.3 * 0.7**9, 1])
    # No loss: h1 is the less. Five of 100: e P(Bin(100, 0.1) <= 5) is. 4.2 in all is counted as 5.
    assert bounds.hoeffding_bentkus(counted(100, 0), 0.1) == pytest.approx([0.9**100])
    binomial = sum(math.comb(100, k) * 0.1**k * 0.9 ** (100 - k) for k in range(6))
    assert bounds.hoeffding_bentkus(counted(100, 5), 0.1) == pytest.approx([math.e * binomial])
    h1 = 0.042 * math.log(0.42) + 0.958 * math.log(0.958 / 0.9)
    assert math.exp(-100 * h1) < math.e * binomial  # else the next line would say nothing of h1
    assert bounds.hoeffding_bentkus(counted(100, 5) * 0.84, 0.1) == pytest.approx([math.exp(-100 * h1)])
    assert bounds.hoeffding_bentkus(counted(100, 10, 30), 0.1) == pytest.approx([1, 1])


def test_the_bet_by_hand():
    """Two rows without loss: both bets are 3/4 / (1 - 0.2). 16 rows of 1/2, level exp(-1/2): the variance before row t is 1/4 / t, so that
    the bet is sqrt(t) / 2. The same of ones: every bet loses, and the capital was never above 1."""
    assert p_values(np.zeros((2, 1)), 0.2, "waudby_smith_ramdas") == pytest.approx([(1 + 0.75 / 0.8 * 0.2) ** -2])
    capital = math.prod(1 + math.sqrt(t) / 2 * 0.25 for t in range(1, 17))
    assert bounds.waudby_smith_ramdas(np.full((16, 1), 0.5), 0.75, math.exp(-0.5)) == pytest.approx([1 / capital])
    assert bounds.waudby_smith_ramdas(np.ones((16, 1)), 0.75).tolist() == [1]


def test_columns_are_bounded_alone_and_in_an_order_drawn_by_the_seed():
    losses = np.random.default_rng(0).random((40, 2 * bounds.STRIDE + 5)) ** 4
    for bound in GENERAL:
        together = p_values(losses, 0.3, bound)
        assert together[[0, 130, -1]] == pytest.approx([p_values(losses[:, [k]], 0.3, bound)[0] for k in (0, 130, -1)], rel=1e-12)
    drawn = {float(p_values(np.sort(losses[:, :1], 0), 0.3, "waudby_smith_ramdas", seed=s)[0]) for s in (0, 0, 1, 2)}
    assert len(drawn) == 3


DRAWS = {
    "bernoulli": lambda rng, size: rng.random(size) < RISK,
    "beta": lambda rng, size: rng.beta(0.2, 1.8, size),
    "half": lambda rng, size: 0.5 * (rng.random(size) < 2 * RISK),
}


@pytest.mark.parametrize("rows", [25, 200])
@pytest.mark.parametrize(("bound", "draw"), [(b, d) for b in BOUNDS for d in DRAWS if d == "bernoulli" or b != "clopper_pearson"])
def test_a_true_risk_at_the_limit_is_seldom_called_less(bound, draw, rows):
    """The hardest case that must not pass, 4,000 times (one a column), at two levels."""
    losses = DRAWS[draw](np.random.default_rng(rows), (rows, 4000))
    p = p_values(losses, RISK, bound)
    for level in (LEVEL, 0.2):
        assert np.mean(p <= level) <= allowed(level, 4000)


@pytest.mark.parametrize("bound", BOUNDS)
def test_a_small_risk_is_mostly_seen(bound):
    """400 rows with a true risk of 0.02 where 0.1 is asked: a bound that never passes anything fails here."""
    p = p_values(np.random.default_rng(3).random((400, REPEATS)) < 0.02, RISK, bound)
    assert np.mean(p <= LEVEL) > 0.95


# --- how many tests are paid for

JUST = RISK + 1e-4  # the least that is wrong to promise
NESTED = np.array([0.0, 0.01, JUST, JUST, 0.15, 0.3])  # the cheaper, the worse
MIXED = np.array([0.01, JUST, JUST, 0.02, *[JUST] * 12])  # wrong ones before, between and after right ones


@pytest.fixture(scope="module")
def samples():
    """scenario -> (true risks, (repeats, rows, settings)). Nested: one draw a row decides all settings. Beta: settings are independent."""
    rng = np.random.default_rng(11)
    shape = (REPEATS, 400, len(MIXED))
    return {
        "nested": (NESTED, rng.random((REPEATS, 400, 1)) < NESTED),
        "mixed": (MIXED, rng.random(shape) < MIXED),
        "mixed beta": (MIXED, rng.beta(MIXED * 2, 2 - MIXED * 2, shape).astype(np.float32)),
    }


@pytest.mark.parametrize("procedure", PROCEDURES)
@pytest.mark.parametrize(
    ("scenario", "bound"),
    [(s, b) for s in ("nested", "mixed", "mixed beta") for b in (GENERAL if s == "mixed beta" else BOUNDS)],
)
def test_promises_are_kept(samples, scenario, bound, procedure):
    """Wrong promises are no more than 1 - confidence; and most samples get a promise, or there would be nothing to keep."""
    risks, draws = samples[scenario]
    cost = np.arange(len(risks), 0, -1)
    chosen = [promise(losses, cost, RISK, 1 - LEVEL, bound, procedure, seed).setting for seed, losses in enumerate(draws)]
    made = np.array([s for s in chosen if s is not None], dtype=int)
    assert (risks[made] > RISK).sum() / REPEATS <= allowed(LEVEL, REPEATS)
    assert len(made) > 0.9 * REPEATS


def test_procedures_by_hand():
    p = np.array([0.01, 0.02, 0.2, 0.001])
    path = np.array([1, 0, 2, 3])
    assert guarantee.fixed_sequence(lambda k: p[k], path, 0.05) == [(1, 0.02), (0, 0.01)]
    assert guarantee.bonferroni(lambda k: p[k], path, 0.05) == [(0, 0.01), (3, 0.001)]


def test_the_front_by_hand():
    loss, cost = np.array([0.3, 0.0, 0.1, 0.1, 0.2, 0.0]), np.array([1.0, 6, 3, 4, 5, 9])
    assert front(loss, cost).tolist() == [5, 1, 2, 0]  # 5 is as good as 1 and dearer; 3 and 4 are beaten


@pytest.mark.parametrize("procedure", PROCEDURES)
def test_the_cheapest_that_passes_is_promised(procedure):
    losses = counted(3000, 0, 30, 900, 600, 60)
    said = promise(np.random.default_rng(0).permutation(losses), [9, 7, 1, 2, 5], RISK, procedure=procedure)
    assert (said.setting, said.cost, said.passed, said.rows + said.ordering_rows) == (4, 5, 3, 3000)
    assert said.p_value <= LEVEL and said.observed == pytest.approx(0.02, abs=0.005)
    assert said.rows_if_lossless is said.rows_if_alike is None
    assert Promise.from_dict(json.loads(json.dumps(said.to_dict()))) == said
    assert "Setting 4: risk at most 0.1 with confidence 0.95" in str(said)


def test_costs_measured_on_the_rows_order_a_split():
    cost = np.random.default_rng(0).normal([3, 2, 1], 0.1, (900, 3))
    for procedure in ("split", "bonferroni"):
        said = promise(counted(900, 0, 0, 450), cost, RISK, procedure=procedure)
        assert (said.setting, said.cost) == (1, pytest.approx(2, abs=0.02))


# --- too few rows


@pytest.mark.parametrize("procedure", PROCEDURES)
@pytest.mark.parametrize("bound", BOUNDS)
def test_too_few_rows_are_refused_and_enough_are_named(bound, procedure):
    said = promise(np.zeros((20, 2)), [2, 1], 0.05, bound=bound, procedure=procedure)
    assert said.setting is None and str(said.rows_if_lossless) in str(said)
    enough = said.rows_if_lossless
    assert promise(np.zeros((enough, 2)), [2, 1], 0.05, bound=bound, procedure=procedure).setting is not None
    assert promise(np.zeros((enough - 1, 2)), [2, 1], 0.05, bound=bound, procedure=procedure).setting is None


@pytest.mark.parametrize("bound", BOUNDS)
def test_rows_with_losses_as_observed_are_counted(bound):
    said = promise(counted(100, 3, 40), [2, 1], 0.05, bound=bound)
    assert said.setting is None and said.rows_if_alike > max(100, said.rows_if_lossless)
    more = np.sort(counted(100, 3, 40), axis=0)[(2 * np.arange(said.rows_if_alike) + 1) * 100 // (2 * said.rows_if_alike)]
    assert more[:, 0].mean() == pytest.approx(0.03, abs=0.002)
    assert promise(more, [2, 1], 0.05, bound=bound).setting == 0


def test_no_number_of_rows_makes_a_bad_setting_good():
    said = promise(counted(100, 5), [1], 0.05)
    assert said.rows_if_alike is None and said.rows_if_lossless == 78 and "no number with losses" in str(said)
    assert rows_needed([0.0], 1e-5, "hoeffding") is None


# --- the page


def test_the_page_says_what_the_code_does():
    text = PAGE.read_text()
    for bound in BOUNDS:
        spreads = [(np.zeros(1), risk) for risk in (0.01, 0.02, 0.05)] + [
            (np.arange(200) < 100 * risk, risk) for risk in (0.01, 0.02, 0.05)
        ]
        row = [format(rows_needed(losses, risk, bound), ",") for losses, risk in spreads]
        assert f"| `{bound}` | {' | '.join(row)} |" in text
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.S | re.M)
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), {})
