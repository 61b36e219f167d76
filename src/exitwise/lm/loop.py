"""The decoding loop: draft, verify, accept. Early exit is the case in which every draft is accepted, full depth that in which none is
made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..criteria import last_real
from ..heads import state_at
from ..reading import Reading
from ..run.encode import Walker
from ..run.walk import Session
from .accept import accepted
from .asked import Asked, likeliest
from .backbone import Backbone
from .drafting import Drafter, Nobody, Offers, certainty
from .ngrams import one_hot
from .plan import Decoding, Draft
from .skipping import Skipper
from .stair import Stair
from .store import blocks
from .watching import Judged


@dataclass
class Written:
    """What a run wrote. tokens: new token ids of each row. depths: layers that each of them ran. rounds, drafted, accepted: of drafts; a
    round of a row adds one token of the model's own. skipped: feed-forward nets that were left out, rows counted. threshold: that was in
    force, where it is chosen while the model runs. stopped: the exception that ended it early, if one did."""

    tokens: list[list[int]]
    depths: list[list[int]]
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    per_round: list[int] = field(default_factory=list)
    skipped: int = 0
    threshold: float | None = None
    stopped: BaseException | None = None


class Loop:
    """One run over some prompts. session: the plan and the read-outs (nothing is attached)."""

    def __init__(self, backbone: Backbone, session: Session, decoding: Decoding, asked: Asked) -> None:
        self.backbone, self.session, self.decoding, self.asked = backbone, session, decoding, asked
        rows = len(asked.prompts)
        room = blocks(max(map(len, asked.prompts)) + asked.most + (decoding.draft.most if decoding.draft else 0))
        policy = session.plan.policy
        self.stair = Stair(backbone, rows, policy, room)
        self.written = Written([[] for _ in range(rows)], [[] for _ in range(rows)])
        self.names = list(range(rows))  # number in the batch of each row that still runs
        self.drafter: Drafter | None = None
        self.offers: Offers | None = None
        self.rule = session.plan.rules.get(backbone.stack.streams[0])
        self.judged: Judged | None = None
        if decoding.watch is not None:
            assert isinstance(self.rule, Reading)
            self.written.threshold = decoding.watch.begin()
            self.rule = replace(self.rule, threshold=self.written.threshold)
            self.judged = Judged(decoding.watch, self.rule.measure, rows) if decoding.watch.open else None
        self.step = 0  # 0 for the prompt

    @torch.no_grad()
    def run(self) -> Written:
        """Until every row has ended. An interrupt ends it early: what was written by then is returned."""
        try:
            self._prompt()
            draft = self.decoding.draft
            while self.names:
                if draft is None:
                    self._token()
                else:
                    self._round(draft)
        except KeyboardInterrupt as stop:
            self.written.stopped = stop
        return self.written

    # -- the prompt ---------------------------------------------------------------------------------------------------------------

    def _prompt(self) -> None:
        """A language model's at full depth, so that every layer has seen it; where the input is the encoder's, the few tokens that a
        decoder begins with are a step like any other."""
        stair, rows = self.stair, list(range(self.stair.rows))
        stair.append(rows, self.asked.prompts)
        draft, first = self.decoding.draft, 0
        if self.backbone.source is not None and self.decoding == Decoding():
            return self._token()
        if draft is not None:
            parts = {} if self.session.answers.exits is None else dict(self.session.answers.parts.items())
            self.drafter = Nobody() if draft.make is None else draft.make(self.backbone, parts, stair.rows)
            self.offers = None if draft.offers is None else draft.offers(parts, self.asked.prompts)
            first = self.drafter.depth
            stair.advance(rows, first)
            self.drafter.see(stair, rows)
        stair.advance(rows, self.backbone.depth, first)
        logits = self.backbone.readout(stair.newest(rows))[:, -1]
        self._take({row: [self._pick(row, logits[row])] for row in rows}, {row: [self.backbone.depth] for row in rows})

    # -- one token for each row, at its own depth ---------------------------------------------------------------------------------

    def _token(self) -> None:
        rows = list(range(self.stair.rows))
        if self.decoding.route is not None:
            states, depths = self._routed(rows)
        elif self.decoding.skip is not None:
            states, depths = self._skipping(rows)
        elif self.rule is None:
            self.stair.advance(rows, self.backbone.depth)
            states, depths = self.stair.newest(rows), [self.backbone.depth] * len(rows)
        else:
            states, depths = self._leaving(rows)
        logits = self._read(states)
        if self.asked.plain:
            picks = likeliest(logits)
        else:
            picks = [self._pick(row, logits[row]) for row in rows]
        if self.judged is not None:
            self.judged.settle(self.backbone, self.stair, [row for row in rows if depths[row] == self.backbone.depth], logits)
        self._take({row: [picks[row]] for row in rows}, {row: [depths[row]] for row in rows})

    def _leaving(self, rows: list[int]) -> tuple[Tensor, list[int]]:
        """Each row runs until its rule lets it go; what the head is given of each, and its depth."""
        session, stack, layers, stair = self.session, self.backbone.stack, self.backbone.depth, self.stair
        counts = [stair.length(row) - stair.fresh[row] for row in rows]
        mask = None if min(counts) == max(counts) else torch.arange(max(counts)) < torch.tensor(counts)[:, None]
        mask = mask if mask is None else mask.to(self.backbone.device)
        walker = Walker(session, stack, self.rule, rows, stair.brought(rows), mask, layers, len(rows), self.step)

        def left(layer: int, states: Tensor) -> list[int]:
            walker.advance(layer, states)
            if self.judged is not None and walker.view is not None and walker.view.at.layer == layer:
                self.judged.note(walker.view)
            return walker.rows

        stair.advance(rows, layers, watch=left)
        assert walker.result is not None
        return state_at(walker.result, -1 if mask is None else last_real(mask))[:, None], walker.depth

    def _read(self, states: Tensor) -> Tensor:
        """(rows, vocabulary) logits of the states (rows, 1, width) with which rows left. Where a trained exit has spoken for a row, its
        words stand; if they were read cheaply, the whole head reads what the exit made of the state."""
        answers, every = self.session.answers, len(states)
        if answers.cheaply is not None or not answers.left:
            return self.backbone.readout(answers.given(states))[:, -1]
        said, answers.left = answers.left, []
        if sum(len(rows) for rows, _, _ in said) < every:
            logits = self.backbone.readout(states)[:, -1]
        else:
            logits = said[0][2].logits.new_empty(every, said[0][2].logits.shape[-1])
        for rows, _, one in said:
            logits[torch.tensor(rows, device=logits.device)] = one.logits.to(logits)
        return logits

    def _routed(self, rows: list[int]) -> tuple[Tensor, list[int]]:
        """All rows run the layers of this step's route."""
        assert self.decoding.route is not None
        route = self.decoding.route(self.step - 1, self.backbone.depth)
        self.stair.cross(rows, route)
        return self.stair.newest(rows), [len(route)] * len(rows)

    def _skipping(self, rows: list[int]) -> tuple[Tensor, list[int]]:
        """All layers, some without their feed-forward net."""
        skip, layers = self.decoding.skip, self.backbone.depth
        assert skip is not None
        skipper = Skipper(self.backbone, skip, len(rows), self.step - 1)
        self.stair.advance(rows, layers, run=skipper.run)
        self.written.skipped += skipper.skipped
        return self.stair.newest(rows), [layers] * len(rows)

    # -- a draft from a shallow depth, and its verdict ----------------------------------------------------------------------------

    def _round(self, draft: Draft) -> None:
        stair, drafter, rows = self.stair, self.drafter, list(range(self.stair.rows))
        assert drafter is not None
        known = [stair.length(row) for row in rows]
        drafts: dict[int, list[int]] = {row: [] for row in rows}
        laws: dict[int, list[Tensor]] = {row: [] for row in rows}
        going = self._found(draft, rows, drafts, laws)
        while going:
            stair.advance(going, drafter.depth)
            drafter.see(stair, going)
            going = self._drafted(draft, going, drafts, laws)
        stair.advance(rows, drafter.depth)
        drafter.see(stair, rows)
        stair.advance(rows, self.backbone.depth, drafter.depth)
        new: dict[int, list[int]] = {}
        for row, logits in zip(rows, self._verdicts(rows, known), strict=True):
            ids = stair.ids[row][: known[row]]
            new[row] = accepted(self.asked, ids, len(self._prompt_of(row)), drafts[row], laws[row], logits)
            stands = len(new[row]) - 1
            self.written.rounds += 1
            self.written.drafted += len(drafts[row])
            self.written.accepted += stands
            self.written.per_round.append(stands)
            stair.crop(row, known[row] + stands)
            drafter.crop(row, known[row] + stands)
        self._take(new, {row: [self.backbone.depth] * len(tokens) for row, tokens in new.items()})

    def _found(self, draft: Draft, rows: list[int], drafts: dict[int, list[int]], laws: dict[int, list[Tensor]]) -> list[int]:
        """Drafts that are offered are appended; the rows that have none, room for one, and a drafter to ask are returned."""
        going = []
        for row in rows:
            room = min(draft.most, self._room(row))
            found = self.offers.offer(row, self.stair.ids[row], room) if self.offers is not None and room > 0 else []
            if found:
                self.stair.append([row], [found])
                drafts[row].extend(found)
                if self.asked.sample:
                    laws[row].extend(one_hot(token, self._words, self.backbone.device) for token in found)
            elif room > 0 and draft.make is not None:
                going.append(row)
        return going

    def _drafted(self, draft: Draft, going: list[int], drafts: dict[int, list[int]], laws: dict[int, list[Tensor]]) -> list[int]:
        """One more drafted token for these rows; those that draft on."""
        assert self.drafter is not None
        logits = self.drafter.propose(self.stair, going)
        sure = certainty(logits).tolist() if draft.sure > 0 else [1.0] * len(going)
        picks = likeliest(logits) if self.asked.plain else []
        for i, row in enumerate(going):
            if not self.asked.plain:
                law = self.asked.law(self.stair.ids[row], len(self._prompt_of(row)), self._whole(logits[i]))
                picks.append(self.asked.choose(law))
                laws[row].append(law.softmax(-1))
            drafts[row].append(picks[i])
        self.stair.append(going, [[pick] for pick in picks])
        return [
            row for row, pick, certain in zip(going, picks, sure, strict=True)
            if certain >= draft.sure and pick not in self.asked.ends and len(drafts[row]) < min(draft.most, self._room(row))
        ]  # fmt: skip

    def _verdicts(self, rows: Sequence[int], known: Sequence[int]) -> list[Tensor]:
        """(drafted + 1, vocabulary) logits of each row, after its newest known token and after each drafted one; one call of the head."""
        states = [self.stair.state(row, known[row] - 1, self.stair.length(row)) for row in rows]
        logits = self.backbone.readout(torch.cat(states, 1))[0]
        return list(torch.split(logits, [s.shape[1] for s in states]))

    # -- what all ways share ------------------------------------------------------------------------------------------------------

    def _prompt_of(self, row: int) -> list[int]:
        return self.asked.prompts[self.names[row]]

    def _room(self, row: int) -> int:
        """Tokens that may be drafted so that the model's own one still fits."""
        return self.asked.most - len(self.written.tokens[self.names[row]]) - 1

    @property
    def _words(self) -> int:
        """Words of the vocabulary."""
        config: Any = self.backbone.model.config
        return int(config.get_text_config().vocab_size)

    def _whole(self, logits: Tensor) -> Tensor:
        """Logits of the whole vocabulary, of a head that reads only its first part."""
        more = self._words - len(logits)
        return F.pad(logits, (0, more), value=float("-inf")) if more > 0 else logits

    def _pick(self, row: int, logits: Tensor) -> int:
        return self.asked.choose(self.asked.law(self.stair.ids[row], len(self._prompt_of(row)), logits))

    def _take(self, new: Mapping[int, list[int]], depths: Mapping[int, list[int]]) -> None:
        """New tokens of all rows: those up to an end are written, rows that have ended leave, the others get their newest token
        appended."""
        staying, newest = [], []
        for row, tokens in new.items():
            name = self.names[row]
            written, ids = self.written.tokens[name], [*self.asked.prompts[name], *self.written.tokens[name]]
            fresh, done = [], False
            for token in tokens:
                ids.append(token)
                fresh.append(token)
                if self.asked.ended(ids, len(self.asked.prompts[name])):
                    done = True
                    break
            written.extend(fresh)
            self.written.depths[name].extend(depths[row][: len(fresh)])
            if self.asked.told is not None:
                self.asked.told(name, fresh)
            if not done:
                staying.append(row)
                newest.append([tokens[-1]])
        if len(staying) < self.stair.rows and staying:
            self.stair.keep(staying)
            if self.drafter is not None:
                self.drafter.keep(staying)
            if self.offers is not None:
                self.offers.keep(staying)
            if self.judged is not None:
                self.judged.keep(staying)
        self.step += 1
        self.names = [self.names[row] for row in staying]
        if staying:
            self.stair.append(list(range(len(staying))), newest)
