"""Drafts from text: what is repeated is guessed, also around changes, and little is kept."""

from __future__ import annotations

import numpy as np
import pytest
from fake_drafter import TryAll
from prefix_model import VOCAB_SIZE, PrefixModel, make_engine, run

from dure.engine.request import Request, SamplingParams
from dure.engine.spec_decode import text
from dure.engine.spec_decode.text import Proposal, RecentTexts, TextDrafter, TextIndex

SOURCE = np.random.default_rng(5).permutation(400).tolist()  # each token once
NEW = 1000  # a token of none


def request(
    prompt_ids: list[int],
    output_ids: list[int] | None = None,
    *,
    root: bytes = b"a",
    prediction_ids: tuple[int, ...] = (),
) -> Request:
    """A request of which this has come out so far."""
    made = Request(
        "r",
        tuple(prompt_ids),
        SamplingParams().resolve({}),
        seed=0,
        max_output=100,
        root=root,
        prediction_ids=prediction_ids,
    )
    for token_id in output_ids or []:
        made.append(token_id)
    return made


def test_an_answer_that_copies_the_prompt_goes_on_as_the_prompt() -> None:
    index = TextIndex(prompt_ids=[*SOURCE, NEW])
    index.extend(SOURCE[50:60])
    proposal = index.propose(20)
    assert proposal.token_ids == tuple(SOURCE[60:80])
    assert proposal.match_length == 10
    index.extend(SOURCE[60:62])
    assert index.propose(3).is_near
    assert index.propose(3).token_ids == tuple(SOURCE[62:65])


CHANGES = {
    "replaced by one": (100, [NEW + 1], 101),
    "replaced by three": (100, [NEW + 1, NEW + 2, NEW + 3], 102),
    "inserted": (100, [NEW + 1, NEW + 2], 100),
    "deleted": (100, [], 115),
    "written twice": (100, [], 95),
}


@pytest.mark.parametrize("change", CHANGES)
def test_behind_a_change_it_goes_on_where_the_source_does_after_one_token(change: str) -> None:
    left, written, back = CHANGES[change]
    index = TextIndex(prompt_ids=[*SOURCE, NEW])
    index.extend(SOURCE[50:left])
    index.extend(written)
    index.extend(SOURCE[back : back + 1])
    proposal = index.propose(8)
    assert proposal.token_ids == tuple(SOURCE[back + 1 : back + 9])
    assert proposal.is_near
    assert proposal.match_length == 1 or change == "deleted"


def test_a_short_match_near_the_place_copied_from_is_preferred_to_a_far_one() -> None:
    prompt = [*SOURCE[:200], 7000, SOURCE[121], 8000, 8001, 7000, SOURCE[121], 8000]
    index = TextIndex(prompt_ids=prompt)
    index.extend(SOURCE[80:120])
    index.extend([7000, SOURCE[121]])  # two tokens agree far away, and one near
    assert index.propose(3).token_ids == tuple(SOURCE[122:125])
    far = TextIndex(prompt_ids=prompt)
    far.extend([7000, SOURCE[121]])
    assert far.propose(1).token_ids == (8000,)
    assert not far.propose(1).is_near


def test_a_much_longer_match_elsewhere_is_followed() -> None:
    index = TextIndex(prompt_ids=[*SOURCE, NEW, *SOURCE[300:310], NEW + 1, NEW + 2])
    index.extend(SOURCE[10:20])
    index.extend(SOURCE[303:310])
    assert index.propose(2).token_ids in ((NEW + 1, NEW + 2), tuple(SOURCE[310:312]))
    index.extend(SOURCE[310:312])
    assert index.propose(2).token_ids == tuple(SOURCE[312:314])


def test_a_prediction_is_guessed_from_its_beginning_and_to_its_end_alone() -> None:
    index = TextIndex(prediction_ids=SOURCE[:30], prompt_ids=[NEW, SOURCE[29], 5000])
    assert index.propose(100).token_ids == tuple(SOURCE[:30])
    assert index.propose(100).is_near
    index.extend([NEW + 1, NEW + 2, SOURCE[0]])  # something before it, as "Sure:"
    assert index.propose(100).token_ids == tuple(SOURCE[1:30])
    index.extend(SOURCE[1:30])
    assert index.propose(100).token_ids == ()


def test_a_period_is_guessed_for_ever() -> None:
    index = TextIndex(prompt_ids=[NEW])
    index.extend([1, 2, 3, 1, 2, 3, 1])
    assert index.propose(7).token_ids == (2, 3, 1, 2, 3, 1, 2)


def test_what_never_occurred_is_followed_by_nothing_known() -> None:
    index = TextIndex(prompt_ids=[1, 2, 3, 4])
    assert index.propose(5).token_ids == ()
    index.extend([5])
    assert index.propose(5).token_ids == ()
    index.extend([2])
    assert index.propose(2) == Proposal((3, 4), match_length=1)  # rated as what it is


def test_kinds_tell_the_place_and_the_length_that_a_match_has_by_then() -> None:
    index = TextIndex(prompt_ids=[*SOURCE, NEW])
    index.extend(SOURCE[50:52])
    kinds = index.propose(8).kinds
    assert kinds == tuple(f"text:far:{n}" for n in (2, 3, 4, 4, 6, 6, 6, 9))
    assert all(kind.startswith("text:") for kind in kinds)
    assert TextIndex(prediction_ids=SOURCE).propose(2).kinds == ("text:near:0", "text:near:1")


def test_an_index_stops_at_its_limit_and_keeps_the_end_of_a_long_prompt() -> None:
    index = TextIndex(prediction_ids=SOURCE, prompt_ids=SOURCE[:300], max_tokens=100)
    assert len(index) == 51  # half of it is for the answer
    index = TextIndex(prompt_ids=SOURCE, max_tokens=100)
    assert len(index) == 50
    index.extend(SOURCE[380:390])
    assert index.propose(4).token_ids == tuple(SOURCE[390:394])
    index.extend(SOURCE[:60])
    assert len(index) == 100
    assert index.is_full
    assert index.propose(4).token_ids == ()


def test_what_was_answered_before_is_guessed_for_the_same_tenant_only() -> None:
    drafter = TextDrafter()
    first = request([1, 2], SOURCE[:40])
    drafter.propose(first, 4)
    drafter.forget(first)
    same = request([3, 4], SOURCE[10:20])
    assert drafter.propose(same, 5).token_ids == tuple(SOURCE[20:25])
    other = request([3, 4], SOURCE[10:20], root=b"b")
    assert drafter.propose(other, 5).token_ids == ()
    second = request([1, 2], [*SOURCE[20:30], NEW, NEW])  # others may end while one runs
    drafter.propose(second, 4)
    drafter.forget(second)
    for token_id in SOURCE[20:30]:
        same.append(token_id)
    assert drafter.propose(same, 1).token_ids in ((NEW,), (SOURCE[30],))


def test_recent_answers_are_bounded_and_the_oldest_go() -> None:
    recent = RecentTexts(max_tokens=100)
    index = TextIndex(prompt_ids=[NEW], recent=recent)
    for start in range(0, 400, 20):
        recent.add(SOURCE[start : start + 20])
        assert len(recent.automaton) <= 100
    index.extend(SOURCE[382:390])
    assert index.propose(3).token_ids == tuple(SOURCE[390:393])
    index.extend(SOURCE[2:10])
    assert index.propose(3).token_ids == ()
    drafter = TextDrafter()
    for root in range(40):
        drafter.propose(request([1], root=bytes([root])), 1)
    assert len(drafter._recent) == text.MAX_ROOTS


def test_an_index_is_in_step_with_its_request_and_freed_with_it() -> None:
    drafter = TextDrafter()
    one = request([*SOURCE, NEW], SOURCE[5:15], prediction_ids=tuple(SOURCE[:9]))
    assert drafter.propose(one, 2).token_ids == tuple(SOURCE[15:17])
    for token_id in SOURCE[15:40]:
        one.append(token_id)
    assert drafter.propose(one, 2).token_ids == tuple(SOURCE[40:42])
    assert drafter._held == 9 + 1 + 401 + 35
    drafter.forget(one)
    drafter.forget(one)
    assert drafter._held == 0
    assert not drafter._indices


def test_beyond_the_memory_of_all_requests_nothing_is_guessed() -> None:
    drafter = TextDrafter(max_tokens=1000)
    copies = [request([*SOURCE, NEW], SOURCE[5:15]) for _ in range(4)]
    found = [bool(drafter.propose(each, 2).token_ids) for each in copies]
    assert found == [True, True, False, False]
    for token_id in range(2000, 2400):  # the first grows beyond what there is
        copies[0].append(token_id)
        drafter.propose(copies[0], 2)
        assert drafter._held <= 1000
    for each in copies:
        drafter.forget(each)
    assert drafter._held == 0
    assert drafter.propose(request([*SOURCE, NEW], SOURCE[5:15]), 2).token_ids


@pytest.mark.parametrize("seed", range(5))
def test_any_text_is_guessed_for_within_the_limit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    letters = int(rng.integers(1, 5))
    index = TextIndex(
        rng.integers(0, letters, 20).tolist(), rng.integers(0, letters, 60).tolist(), max_tokens=300
    )
    for _ in range(100):
        limit = int(rng.integers(0, 9))
        proposal = index.propose(limit)
        assert len(proposal.token_ids) <= limit
        assert len(proposal.kinds) == len(proposal.token_ids)
        assert all(0 <= token_id < letters for token_id in proposal.token_ids)
        index.extend(rng.integers(0, letters, int(rng.integers(1, 4))).tolist())


def test_answers_are_the_same_with_drafts_from_text_and_steps_are_fewer() -> None:
    class Periodic(PrefixModel):
        """Says 0 to 9 over and over, with a surprise now and then."""

        def _logits(self, batch: object, row: int) -> np.ndarray:
            logits = super()._logits(batch, row)  # type: ignore[arg-type]
            position = int(batch.positions[row])  # type: ignore[attr-defined]
            if position % 37:
                logits[position % 10] += 9
            return logits

    prompts = [[1, 2, 3], [7] * 40, list(range(30))]
    params = [
        SamplingParams(max_tokens=120, temperature=0),
        SamplingParams(max_tokens=120, temperature=1, seed=5, logprobs=2),
        SamplingParams(max_tokens=120, temperature=0.8, seed=7, repetition_penalty=1.1),
    ]
    plain = make_engine(Periodic())
    expected = [plain.add(ids, each) for ids, each in zip(prompts, params, strict=True)]
    run(plain)
    texts = TextDrafter()
    engine = make_engine(Periodic(), drafter=TryAll(texts))
    prediction = [token % VOCAB_SIZE for token in range(50)]
    actual = [
        engine.add(ids, each, prediction_ids=prediction)
        for ids, each in zip(prompts, params, strict=True)
    ]
    run(engine)
    for before, after in zip(expected, actual, strict=True):
        assert before.output_ids == after.output_ids
        assert before.logprobs == after.logprobs
    assert engine.stats.accepted_tokens > 100
    assert engine.stats.steps < plain.stats.steps / 1.5
    assert not texts._indices
