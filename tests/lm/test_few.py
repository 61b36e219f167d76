"""The kernel for few tokens: the same numbers as PyTorch's, bit by bit the same in any company, and left aside wherever it does not fit."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tests.families.cases import made
from tests.lm.parts import CLOSE, LEAN, backbone_of, batch, setting, walked, words
from torch import Tensor
from typer.testing import CliRunner

from exitwise import Engine, families, few
from exitwise.cli.app import app
from exitwise.errors import BuildError
from exitwise.families.llama import small
from exitwise.few import MOST, Kernel
from exitwise.lm.backbone import Backbone
from exitwise.lm.lean import attend, rotary
from exitwise.lm.stair import Stair
from exitwise.lm.store import Span, Store


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a kernel that was built for these tests."""
    if not any(shutil.which(name) for name in few.COMPILERS):
        pytest.skip(f"no C++ compiler ({', '.join(few.COMPILERS)})")
    folder: Path = tmp_path_factory.mktemp("kernel")
    with pytest.MonkeyPatch.context() as patch:
        setting(patch, EXITWISE_CACHE=str(folder))
        few.build()
    return folder


@pytest.fixture
def built(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """The kernel, in force."""
    setting(monkeypatch, EXITWISE_CACHE=str(cache), EXITWISE_KERNEL="1")
    found = few.kernel()
    assert found is not None
    yield found


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows,width", [(1, 1), (5, 15), (37, 83), (64, 640), (33, 641), (16, 1536)])
def test_products_are_those_of_float64(built: Kernel, rows: int, width: int) -> None:
    """To the rounding of sums of `width` products in float32."""
    matrix = drawn(rows, width)
    for count in range(1, MOST + 1):
        tokens, onto = drawn(count, width, seed=count), drawn(count, rows, seed=-count)
        want = tokens.double() @ matrix.double().T
        torch.testing.assert_close(built(tokens, matrix).double(), want, atol=2e-6 * width**0.5, rtol=1e-5)
        torch.testing.assert_close(built(tokens, matrix, onto).double(), want + onto.double(), atol=2e-6 * width**0.5, rtol=1e-5)


def test_tokens_may_lie_as_they_like(built: Kernel) -> None:
    matrix, tokens, onto = drawn(37, 83), drawn(83, 5), drawn(37, 5)
    assert torch.equal(built(tokens.t(), matrix, onto.t()), built(tokens.t().contiguous(), matrix, onto.t().contiguous()))


def test_a_token_has_the_same_numbers_in_any_company(built: Kernel) -> None:
    """Bit by bit: with 1 to 16 tokens, at any place among them, and on one thread or two."""
    matrix, tokens, threads = drawn(101, 1536), drawn(MOST, 1536, seed=1), torch.get_num_threads()
    alone = torch.cat([built(tokens[i : i + 1], matrix) for i in range(MOST)])
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for first, end in pairwise((0, 1, 3, 6, 10, 15, 16)):
                assert torch.equal(built(tokens[first:end], matrix), alone[first:end])
            assert torch.equal(built(tokens, matrix), alone)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("rows,width", [(1, 1), (37, 83), (64, 640), (33, 1500)])
@pytest.mark.parametrize("tangent", [False, True])
def test_what_is_gated_is_that_of_float64(built: Kernel, rows: int, width: int, tangent: bool) -> None:
    """To the rounding of two sums in float32, one times the other; a token's numbers are the same in any company and on any number of
    threads. Far out (640) the gate is all or nothing."""
    gate, up, tokens, threads = drawn(rows, width), drawn(rows, width, seed=1), drawn(MOST, width, seed=2), torch.get_num_threads()
    if width == 640:
        gate = 30 * gate
    one, other = tokens.double() @ gate.double().T, tokens.double() @ up.double().T
    want = (torch.nn.functional.gelu(one, approximate="tanh") if tangent else torch.nn.functional.silu(one)) * other
    found = built.gated(tokens, gate, up, tangent)
    rounding = 2e-6 * width**0.5 * float(gate.abs().max()) * (1 + float(other.abs().max()))  # of the gate's sum, times the other
    torch.testing.assert_close(found.double(), want, atol=rounding, rtol=1e-5)
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            alone = torch.cat([built.gated(tokens[i : i + 1], gate, up, tangent) for i in range(MOST)])
            assert torch.equal(alone, found) and torch.equal(built.gated(tokens[3:8], gate, up, tangent), found[3:8])
    finally:
        torch.set_num_threads(threads)
    with pytest.raises(RuntimeError, match="do not fit"):
        built.gated(tokens, gate, up[:0], tangent)
    tokens[2, 0] = float("nan")
    assert built.gated(tokens, gate, up, tangent).isnan().any(1).nonzero().tolist() == [[2]]


@pytest.mark.parametrize("width", [12, 64, 83])
def test_the_norm_is_that_of_float64(built: Kernel, width: int) -> None:
    """Of states so small that the floor is half of the sum too."""
    states, gain = 1e-3 * drawn(3, 5, width), drawn(width, seed=1)
    floor = float(states.double().square().sum(-1).mean())
    want = states.double() * gain.double() / (states.double().square().sum(-1, keepdim=True) + floor).sqrt()
    torch.testing.assert_close(built.norm(states, gain, floor).double(), want, atol=1e-6, rtol=1e-5)
    turned = states.transpose(0, 1)
    torch.testing.assert_close(built.norm(turned, gain, floor).double(), want.transpose(0, 1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("width", [1, 12, 64, 83, 576])
def test_cosines_are_those_of_float64(built: Kernel, width: int) -> None:
    """Rows that lie apart, a zero vector, which is like nothing, and one that is no number."""
    one, other = drawn(5, 2, width)[:, 0], drawn(5, 2, width, seed=1)[:, 1]
    one[3] = 0.0
    want = torch.cosine_similarity(one.double(), other.double(), dim=-1)
    torch.testing.assert_close(torch.tensor(built.cosines(one, other)).double(), want, atol=1e-6, rtol=1e-6)
    assert built.cosines(one, other)[2:4] == [*built.cosines(one[2:3], other[2:3]), 0.0]
    one[1, -1] = float("nan")
    assert torch.tensor(built.cosines(one, other)).isnan().tolist() == [False, True, False, False, False]
    with pytest.raises(RuntimeError, match="no cosines"):
        built.cosines(one, other[:2])


CASES = [  # (slots that are filled, new tokens, heads, groups, width, window) of rows
    ((40,), 3, 9, 3, 64, None), ((0,), 16, 4, 2, 32, None), ((5, 70, 33), 2, 4, 1, 80, None), ((300, 300), 1, 8, 8, 128, 50),
    ((90, 20), 7, 4, 4, 256, 30), ((17,), 1, 2, 1, 16, 1), ((63,), 3, 4, 2, 64, None),
]  # fmt: skip


@pytest.mark.parametrize("starts,tokens,heads,groups,width,window", CASES)
def test_attention_is_that_of_pytorch(
    built: Kernel, starts: tuple[int, ...], tokens: int, heads: int, groups: int, width: int, window: int | None
) -> None:
    """Exponentials and sums in float32 in another order; keys and values lie where they would."""
    rows, span = len(starts), Span(None, starts, tokens)
    stores = [Store(rows), Store(rows)]
    for store in stores:
        if max(starts):
            store.write(
                Span(None, (0,) * rows, max(starts)), drawn(rows, groups, max(starts), width), drawn(rows, groups, max(starts), width)
            )
    query, keys, values = (drawn(rows, tokens, n, width, seed=seed) for seed, n in enumerate((heads, groups, groups), start=2))
    angles = span.positions.expand(rows, -1)[..., None] * drawn(width // 2, seed=9).abs().repeat(2)
    cosine, sine = rotary(angles.cos(), angles.sin())
    plain, ours = stores
    turned = [(x * cosine + x.roll(width // 2, -1) * sine).transpose(1, 2) for x in (query, keys)]
    plain.write(span, turned[1], values.transpose(1, 2))
    want = attend(turned[0], *plain.read(span), span.mask(torch.float32, window), width**-0.5).transpose(1, 2)
    got = built.attend((query, keys, values), (cosine, sine), span, ours, window, width**-0.5)
    torch.testing.assert_close(got, want, atol=5e-6, rtol=1e-5)
    for mine, theirs in ((ours.keys, plain.keys), (ours.values, plain.values)):
        assert mine is not None and theirs is not None
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("starts,tokens,heads,groups,width,window", CASES)
def test_attention_of_a_token_is_the_same_in_any_company(
    built: Kernel, starts: tuple[int, ...], tokens: int, heads: int, groups: int, width: int, window: int | None
) -> None:
    """Bit by bit: all rows and tokens at once, or each row's tokens one after another;
    a later token that is no number changes none before."""
    rows = len(starts)
    query, keys, values = (drawn(rows, tokens, n, width, seed=seed) for seed, n in enumerate((heads, groups, groups), start=2))
    if tokens > 1:
        keys[:, -1], values[:, -1] = float("nan"), float("nan")
    still = torch.ones(1, tokens, 1, width), torch.zeros(1, tokens, 1, width)
    past = [drawn(rows, groups, max(starts), width, seed=seed) for seed in (5, 6)]
    together, apart = Store(rows), Store(rows)
    for store in (together, apart):
        if max(starts):
            store.write(Span(None, (0,) * rows, max(starts)), *past)
    want = built.attend((query, keys, values), still, Span(None, starts, tokens), together, window, 0.3)
    one = [part[:, :1] for part in still]
    for row, start in enumerate(starts):
        for token in range(tokens):
            brought = [part[row : row + 1, token : token + 1] for part in (query, keys, values)]
            found = built.attend(
                (brought[0], brought[1], brought[2]), (one[0], one[1]), Span((row,), (start + token,), 1), apart, window, 0.3
            )
            assert torch.equal(found[0, 0], want[row, token]) or (
                token == tokens - 1 and found.isnan().all() and want[row, token].isnan().all()
            )


def test_great_scores_and_nan_are_no_trouble(built: Kernel) -> None:
    """A score of 10,000 is all of the sum, its rivals are exactly nothing; what is no number stays none."""
    store, span = Store(1), Span(None, (2,), 1)
    keys, values = torch.zeros(1, 1, 2, 16), torch.tensor([3.0, 5.0])[None, None, :, None].expand(1, 1, 2, 16)
    keys[..., 0, 0] = 1e4
    store.write(Span(None, (0,), 2), keys, values)
    query = torch.zeros(1, 1, 1, 16)
    query[..., 0] = 1.0
    still = torch.ones(1, 1, 1, 16), torch.zeros(1, 1, 1, 16)
    brought = query, torch.zeros(1, 1, 1, 16), torch.full((1, 1, 1, 16), 7.0)
    assert torch.equal(built.attend(brought, still, span, store, None, 1.0), torch.full((1, 1, 1, 16), 3.0))
    spoiled = torch.full_like(query, float("nan")), *brought[1:]
    assert built.attend(spoiled, still, span, store, None, 1.0).isnan().all()
    assert store.keys is not None
    store.keys[..., 1, 0] = float("nan")  # one of three: it is not left out of the sum
    assert built.attend(brought, still, span, store, None, 1.0).isnan().all()


@pytest.mark.parametrize("policy", ["run late", "propagate"])
@pytest.mark.parametrize("case", LEAN)
def test_models_say_the_same_with_and_without(built: Kernel, monkeypatch: pytest.MonkeyPatch, case: str, policy: str) -> None:
    tokens, depths, said = [words(90, 1), words(90, 2)], [[4, 1, 2, 4, 3] * 4, [1, 3, 4, 4, 2] * 4], []
    with torch.no_grad():
        for wish in ("1", "0"):
            setting(monkeypatch, EXITWISE_KERNEL=wish)
            backbone = backbone_of(case)
            assert {lean.gate.kernel is not None for lean in backbone.leans if lean is not None} == {wish == "1"}
            said.append(walked(Stair(backbone, 2, policy), tokens, depths, 70))
    torch.testing.assert_close(said[0], said[1], **CLOSE)
    assert not torch.equal(said[0], said[1])  # it took part


@torch.no_grad()
@pytest.mark.parametrize("policy", ["run late", "recompute", "propagate", "copy"])
@pytest.mark.parametrize("kind,window", [("Llama", {}), ("Mistral", {"sliding_window": 6})])
def test_rows_that_go_apart_say_the_same(
    built: Kernel, monkeypatch: pytest.MonkeyPatch, kind: str, window: dict[str, int], policy: str
) -> None:
    """With heads of 16, which the kernel attends for; rows come together, go apart and change their number."""
    torch.manual_seed(0)
    model, _ = small(kind, hidden_size=64, **window)
    tokens = [words(90, seed) for seed in (1, 2, 3)]
    depths, said = [[4, 1, 2, 4, 3] * 4, [1, 3, 4, 4, 2] * 4, [4, 4, 1, 4, 4] * 4], []
    for wish in ("1", "0"):
        setting(monkeypatch, EXITWISE_KERNEL=wish)
        backbone = Backbone(model, families.of(model)[1])
        assert all(lean is not None and lean.unmasked(Span(None, (0,), 1)) == (wish == "1") for lean in backbone.leans)
        said.append(walked(Stair(backbone, 3, policy), tokens, depths, 70))
    torch.testing.assert_close(said[0], said[1], **CLOSE)


@torch.no_grad()
def test_drafts_are_verified_bit_by_bit(built: Kernel) -> None:
    """Twelve tokens at once have the logits that each has when it comes alone; so has a row beside another."""
    model, _ = small("Llama", hidden_size=64, intermediate_size=160)  # heads of 16; PyTorch's SiLU knows lanes of 16 from what is left over
    backbone, ids = Backbone(model, families.of(model)[1]), words(40)

    def logits(rows: int, parts: list[list[int]]) -> Tensor:
        stair, found = Stair(backbone, rows), []
        for part in parts:
            stair.append(range(rows), [part] * rows)
            stair.advance(range(rows), backbone.depth)
            found.append(backbone.readout(stair.state(0, stair.length(0) - len(part), stair.length(0))))
        return torch.cat(found, 1)[:, 28:]

    one_by_one = logits(1, [ids[:28], *([i] for i in ids[28:])])
    assert torch.equal(logits(1, [ids[:28], ids[28:]]), one_by_one)
    assert torch.equal(logits(2, [ids[:28], *([i] for i in ids[28:])]), one_by_one)
    torch.testing.assert_close(logits(2, [ids[:28], ids[28:]]), one_by_one, **CLOSE)  # 24 tokens: not by the kernel


@pytest.mark.parametrize("case", ["llama", "gemma", "gpt2", "phi"])
def test_texts_are_those_of_generate(built: Kernel, case: str) -> None:
    model, _ = made(case)
    inputs = batch(9, 4)
    want = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    for method, knobs in (("never", {}), ("ngram", {"drafts": 5, "repeats": 15})):
        assert torch.equal(Engine(model, method, **knobs).generate(**inputs, max_new_tokens=12).sequences, want)


@torch.no_grad()
def test_the_head_is_read_by_its_own_module_where_it_is_more_than_a_matrix(built: Kernel) -> None:
    """A cap on the logits shows in the trial; a hook is heard."""
    assert backbone_of("llama")._quick is not None
    capped, _ = made("gemma")
    capped.config.final_logit_softcapping = 2.0
    assert Backbone(capped, families.of(capped)[1])._quick is None
    model, _ = made("llama")
    heard: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda *given: heard.append(1))
    Engine(model, "never").generate(**batch(4), max_new_tokens=3)
    assert len(heard) == 3
    twice, _ = made("llama")
    own = twice.model.norm.forward
    twice.model.norm.forward = lambda states: 2 * own(states)
    want = twice.generate(**batch(4), max_new_tokens=3, do_sample=False)
    assert torch.equal(Engine(twice, "never").generate(**batch(4), max_new_tokens=3).sequences, want)


def test_weights_that_do_not_fit_are_left_to_pytorch() -> None:
    assert Kernel.takes(torch.zeros(2, 3))
    assert not Kernel.takes(torch.zeros(2, 3, dtype=torch.bfloat16)) and not Kernel.takes(torch.zeros(3, 2).t())
    assert (
        not Kernel.looks(Span(None, (0,), MOST + 1), 64)
        and not Kernel.looks(Span(None, (0,), 1), 40)
        and Kernel.looks(Span(None, (0,), 1), 48)
    )


def test_what_does_not_fit_is_refused_and_not_read(built: Kernel) -> None:
    """As PyTorch refuses it; a layer of another form is found out by this."""
    matrix, ones = torch.ones(4, 8), torch.ones
    for tokens, onto in ((ones(2, 7), None), (ones(2, 8, dtype=torch.float64), None), (ones(2, 8), ones(2, 5)), (ones(2, 8), ones(1, 4))):
        with pytest.raises(RuntimeError, match="is no product of float32"):
            built(tokens, matrix, onto)
    for states in (ones(2, 7), ones(2, 8, dtype=torch.bfloat16)):
        with pytest.raises(RuntimeError, match="A gain of"):
            built.norm(states, ones(8), 0.0)
    span, store = Span(None, (0,), 1), Store(1)
    for heads, groups, turn in ((3, 2, ones(1, 1, 1, 16)), (2, 1, ones(1, 1, 1, 8)), (2, 1, ones(1, 2, 1, 16)), (2, 1, ones(2, 1, 1, 16))):
        with pytest.raises(RuntimeError, match="do not fit"):
            built.attend((ones(1, 1, heads, 16), ones(1, 1, groups, 16), ones(1, 1, groups, 16)), (turn, turn), span, store, None, 1.0)


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    setting(monkeypatch, EXITWISE_CACHE=str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert few.kernel() is None
    with pytest.raises(BuildError, match="No C\\+\\+ compiler was found"):
        few.build()
    monkeypatch.setenv("CXX", "none-such-compiler")
    with pytest.raises(BuildError, match="none-such-compiler could not be run"):
        few.build()
    false = tmp_path / "false"
    false.write_text("#!/bin/sh\necho 'few.cpp:1: error: too old' >&2\nexit 1\n", encoding="utf-8")
    false.chmod(false.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(false))
    monkeypatch.setenv("PATH", "/bin:/usr/bin")
    with pytest.raises(BuildError, match="could not compile the kernel: few.cpp:1: error: too old"):
        few.build()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["false"]


def test_a_spoiled_library_is_left_aside_and_built_anew(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    setting(monkeypatch, EXITWISE_CACHE=str(tmp_path))
    few.library().write_bytes(b"no library")
    with pytest.warns(UserWarning, match="is left aside: .*exitwise kernel"):
        assert few.kernel() is None
    assert few.build().sound() and few.kernel() is not None


def test_a_kernel_that_multiplies_wrongly_is_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    setting(monkeypatch, EXITWISE_CACHE=str(tmp_path))
    source = tmp_path / "few.cpp"
    text = few.SOURCE.read_text(encoding="utf-8")
    source.write_text(text.replace("matrix[r] * token;", "matrix[r] + token;"), encoding="utf-8")
    assert source.read_text(encoding="utf-8") != text
    monkeypatch.setattr(few, "SOURCE", source)
    with pytest.raises(BuildError, match="multiplies wrongly"):
        few.build()
    assert few.kernel() is None
    with pytest.MonkeyPatch.context() as blind:
        blind.setattr(Kernel, "sound", lambda self: True)
        few.build()
    few._found.cache_clear()
    few.kernel.cache_clear()
    with pytest.warns(UserWarning, match="left aside: its products are wrong"):
        assert few.kernel() is None


def test_it_can_be_left_aside(built: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    setting(monkeypatch, EXITWISE_KERNEL="0")
    assert few.kernel() is None


def test_the_command_tells_where_it_lies_and_what_it_gains(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    setting(monkeypatch, EXITWISE_CACHE=str(cache))
    done = CliRunner().invoke(app, ["kernel", "--json"])
    told = json.loads(done.stdout)
    assert done.exit_code == 0 and Path(told["path"]) == few.library() and set(told["times_as_fast"]) == {"1", "2", "4", "8", "16"}
    assert all(gain > 0 for gain in told["times_as_fast"].values())
    setting(monkeypatch, EXITWISE_CACHE=str(tmp_path))
    monkeypatch.setenv("CXX", "none-such-compiler")
    refused = CliRunner().invoke(app, ["kernel"])
    assert refused.exit_code == 2 and "BuildError: The compiler none-such-compiler could not be run" in refused.stderr
