"""How many guesses go into a step, and whose: with hand-made costs, chances and sources."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from prefix_model import PrefixModel, StateModel, make_engine, random_prompt, run

from dure.engine.request import Request, SamplingParams
from dure.engine.spec_decode.acceptance import Rates
from dure.engine.spec_decode.cost import StepCost
from dure.engine.spec_decode.draft import Draft, StepResult, Verified
from dure.engine.spec_decode.speculator import MAX_DRAFTS, Speculator

LOTS = MAX_DRAFTS
SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128)


def a_request(name: str = "a", prompt: Sequence[int] = (1, 2, 3)) -> Request:
    """A request that decodes: its prompt and one token."""
    request = Request(name, tuple(prompt), SamplingParams().resolve({}), 1, 1000, b"")
    request.append(9)
    return request


class Texts:
    """Guesses `draft`, whoever asks."""

    def __init__(self, draft: Draft | None = None) -> None:
        self.draft = draft or Draft()
        self.forgotten: list[Request] = []

    def propose(self, request: Request, limit: int) -> Draft:
        return Draft(self.draft.token_ids[:limit], self.draft.kinds[:limit])

    def forget(self, request: Request) -> None:
        self.forgotten.append(request)


class Small:
    """A model source: guesses 100, 101, … for as long as it is let."""

    kind = "model"

    def __init__(self, seconds: float = 0.01) -> None:
        self.cost = linear(seconds, 0.0)
        self.asked: list[list[Request]] = []
        self.wanted: list[bool] = []
        self.forgotten: list[Request] = []

    def propose(
        self,
        requests: Sequence[Request],
        limits: Sequence[int],
        goes_on: Callable[[int, Sequence[str]], bool],
    ) -> list[Draft]:
        self.asked.append(list(requests))
        made = []
        for place, limit in enumerate(limits):
            kinds: list[str] = []
            while len(kinds) < limit and goes_on(place, kinds):
                kinds.append("model:2")
            made.append(Draft(tuple(range(100, 100 + len(kinds))), tuple(kinds)))
        return made

    def observe(self, step: StepResult, *, wanted: bool) -> None:
        self.wanted.append(wanted)

    def forget(self, request: Request) -> None:
        self.forgotten.append(request)


def linear(first: float, row: float) -> StepCost:
    """The cost of a machine where a row beside the first takes `row` seconds."""
    cost = StepCost()
    for count in SIZES:
        cost.add(count, first + row * (count - 1))
    return cost


def texts(count: int, kind: str = "text:near:9") -> Draft:
    return Draft(tuple(range(20, 20 + count)), (kind,) * count)


def speculator(first: float, row: float, *sources: Texts, model: Small | None = None) -> Speculator:
    made = Speculator(sources, model)
    made.step_cost = linear(first, row)
    return made


def believe(rates: Rates, kind: str, chance: float) -> None:
    """Have seen that guesses of a kind are right in this share."""
    for number in range(400):
        rates.add(kind, int((number + 1) * chance) > int(number * chance))
    assert rates(kind) == pytest.approx(chance, abs=0.05)


def told(request: Request, drawn: Sequence[int], rows: int = 1, seconds: float = 1.0) -> StepResult:
    """A step that brought one request these tokens."""
    start = len(request.tokens) - 1
    return StepResult([Verified(request, start, len(drawn), 0, tuple(drawn))], rows, seconds)


# How often guesses are right


def test_a_rate_begins_with_what_others_saw_and_ends_with_its_own() -> None:
    everyone = Rates()
    assert 0 < everyone("text:far:1") < 1
    believe(everyone, "text:far:1", 0.25)
    own = Rates(everyone)
    assert own("text:far:1") == everyone("text:far:1")
    before = own("text:near:9")
    for _ in range(15):
        own.add("text:far:1", is_right=True)
    assert own("text:far:1") > 0.75
    assert own("text:near:9") == before
    assert everyone("text:far:1") < 0.4


def test_the_newest_guesses_count_most() -> None:
    rates = Rates(Rates())
    for _ in range(50):
        rates.add("text", is_right=True)
    for _ in range(9):
        rates.add("text", is_right=False)
    assert rates("text") < 0.6


def test_kinds_without_number_fill_no_memory() -> None:
    rates = Rates(Rates())
    for number in range(10_000):
        rates.add(f"text:{number}", is_right=True)
    assert len(rates._counts) <= 64
    assert 0 < rates("text:9999") < 1


# How many


@pytest.mark.parametrize("chance", [0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("row", [0.02, 0.16, 0.5])
def test_the_number_of_guesses_is_the_one_that_brings_most_tokens_a_second(
    chance: float, row: float
) -> None:
    source = Texts(texts(LOTS))
    one = speculator(1.0, row, source)
    believe(one._rates, "text:near:9", chance)
    rate = one._rates("text:near:9")
    speeds = [
        sum(rate**depth for depth in range(count + 1)) / one.step_cost(1 + count)
        for count in range(LOTS + 1)
    ]
    best = int(np.argmax(speeds))
    (guessed,) = one.propose([a_request()], [LOTS], 1)
    if speeds[best] < 1.02:
        assert guessed == ()
    else:
        assert guessed == source.draft.token_ids[:best]


def test_a_limit_is_kept() -> None:
    one = speculator(1.0, 0.001, Texts(texts(LOTS)))
    believe(one._rates, "text:near:9", 0.99)
    limits = [3, 0, 7]
    guessed = one.propose([a_request(name) for name in "abc"], limits, 3)
    assert [len(each) for each in guessed] == limits


def test_under_load_nothing_is_guessed() -> None:
    """A step that is bound by arithmetic takes as long again for each row more."""
    one = Speculator([Texts(texts(4))])
    for rows in SIZES:
        one.step_cost.add(rows, 1.0 if rows < 16 else rows / 16)
    believe(one._rates, "text:near:9", 0.6)
    few = [a_request(str(number)) for number in range(2)]
    many = [a_request(str(number)) for number in range(2, 34)]
    assert all(one.propose(few, [4] * 2, 2))
    assert one.propose(many, [4] * 32, 32) == [()] * 32


def test_rows_of_a_prompt_are_no_reason_for_or_against() -> None:
    """They are computed either way; what a guess adds to them is what counts."""
    one = Speculator([Texts(texts(2))])
    for rows in SIZES:
        one.step_cost.add(rows, 1.0 if rows <= 8 else 1.0 + (rows - 8))
    believe(one._rates, "text:near:9", 0.7)
    assert len(one.propose([a_request()], [2], 1)[0]) == 2
    assert one.propose([a_request()], [2], 100) == [()]  # each row takes as long as a token


def test_the_likeliest_guesses_of_all_requests_come_first() -> None:
    class ByName(Texts):
        def propose(self, request: Request, limit: int) -> Draft:
            return texts(4, f"text:{request.id}")

    one = Speculator([ByName()])
    for rows in SIZES:  # eight rows are as good as free, then each is dear
        one.step_cost.add(rows, 1.0 + 0.001 * rows + max(0, rows - 8))
    for name, chance in (("sure", 0.95), ("likely", 0.7), ("poor", 0.15)):
        believe(one._rates, f"text:{name}", chance)
    requests = [a_request(name) for name in ("poor", "likely", "sure")]
    poor, likely, sure = (len(each) for each in one.propose(requests, [4] * 3, 3))
    assert poor == 0 or poor < likely  # 0.15
    assert sure == 4  # 0.95, 0.90, 0.86, 0.81
    assert likely in (1, 2)  # 0.7, 0.49
    assert 3 + poor + likely + sure <= 9


def test_nothing_right_means_nothing_guessed_after_a_few() -> None:
    one = speculator(1.0, 0.16, Texts(texts(4)))
    request, tried = a_request(), 0
    for step in range(40):
        (guessed,) = one.propose([request], [4], 1)
        tried += bool(guessed)
        one.observe(told(request, [5], rows=1 + len(guessed), seconds=1 + 0.16 * len(guessed)))
        request.append(5)
        assert not (guessed and step > 20)
    assert 0 < tried < 12


def test_guesses_that_are_not_tried_are_learnt_from() -> None:
    source = Texts(texts(4))
    one = speculator(1.0, 0.16, source)
    believe(one._rates, "text:near:9", 0.0)
    request = a_request()
    assert one.propose([request], [4], 1) == [()]
    for _ in range(20):
        one.observe(told(request, [20]))  # what would have been guessed
        (guessed,) = one.propose([request], [4], 1)
        if guessed:
            return
    raise AssertionError("it never began to guess")


def test_a_guess_behind_a_wrong_one_is_not_held_against_its_kind() -> None:
    one = speculator(1.0, 0.16, Texts(Draft((20, 21), ("text:near:1", "other:2"))))
    request = a_request()
    one.propose([request], [4], 1)
    before = one._records[request].rates("other:2")
    one.observe(told(request, [5]))
    assert one._records[request].rates("other:2") == before
    assert one._records[request].rates("text:near:1") < 0.5


def test_forced_tokens_are_guessed_and_nothing_else() -> None:
    one = speculator(1.0, 0.16, Texts(texts(9)), model=Small())
    request = a_request()
    request.forced_tokens.extend([51, 52, 53])
    assert one.propose([request], [LOTS], 1) == [(51, 52, 53)]
    assert one.propose([request], [2], 1) == [(51, 52)]


def test_a_likely_token_is_better_than_many_unlikely_ones() -> None:
    few, many = Draft((7,), ("text:b",)), texts(LOTS, "text:a")
    one = speculator(1.0, 0.3, Texts(many), Texts(few))
    believe(one._rates, "text:a", 0.6)  # 1.5 of them are right
    believe(one._rates, "text:b", 0.95)
    assert one.propose([a_request()], [LOTS], 1) == [(7,)]


def test_the_better_of_two_texts_counts() -> None:
    one = speculator(1.0, 0.1, Texts(texts(4, "text:a")), Texts(Draft((7, 8), ("text:b",) * 2)))
    believe(one._rates, "text:a", 0.2)
    believe(one._rates, "text:b", 0.9)
    assert one.propose([a_request()], [4], 1) == [(7, 8)]


# A model that guesses


def test_a_model_is_asked_where_texts_promise_less_and_goes_on_while_it_pays() -> None:
    small, source = Small(0.05), Texts()
    one = speculator(1.0, 0.16, source, model=small)
    believe(one._rates, "model", 0.8)
    believe(one._rates, "model:2", 0.8)
    request = a_request()
    (guessed,) = one.propose([request], [LOTS], 1)
    rate = one._rates("model:2")
    speeds = [
        sum(rate**depth for depth in range(count + 1)) / (1 + (0.16 + 0.05) * count)
        for count in range(LOTS + 1)
    ]
    assert abs(len(guessed) - int(np.argmax(speeds))) <= 1
    source.draft = texts(LOTS)
    believe(one._rates, "text:near:9", 0.98)
    small.asked.clear()
    (guessed,) = one.propose([request], [LOTS], 1)
    assert guessed == source.draft.token_ids[: len(guessed)]
    assert len(guessed) > 5
    assert small.asked == []


def test_a_model_reads_no_prompt_before_the_first_token() -> None:
    small = Small()
    one = speculator(1.0, 0.16, model=small)
    request = Request("new", (1, 2, 3), SamplingParams().resolve({}), 1, 1000, b"")
    assert one.propose([request], [4], 1) == [()]
    assert small.asked == []


def test_a_model_that_is_rarely_right_is_probed_rarely() -> None:
    small = Small(0.05)
    one = speculator(1.0, 0.16, model=small)
    believe(one._rates, "model", 0.05)
    believe(one._rates, "model:2", 0.05)
    request = a_request()
    for _ in range(1000):
        one.propose([request], [4], 1)
        one.observe(told(request, [5]))
        request.append(5)
    assert 10 <= len(small.asked) <= 20


def test_a_probe_takes_no_row_of_the_step() -> None:
    """What it guesses is compared with what is drawn anyway."""
    small = Small(0.05)
    one = speculator(1.0, 0.9, model=small)
    believe(one._rates, "model", 0.2)
    believe(one._rates, "model:2", 0.2)
    request = a_request()
    for _ in range(100):
        assert one.propose([request], [4], 1) == [()]
        one.observe(told(request, [5]))
        request.append(5)
    assert len(small.asked) == 1


def test_a_model_that_turns_right_is_found_out() -> None:
    small = Small(0.05)
    one = speculator(1.0, 0.16, model=small)
    believe(one._rates, "model", 0.1)
    believe(one._rates, "model:2", 0.1)
    request = a_request()
    for _ in range(1500):
        (guessed,) = one.propose([request], [4], 1)
        drawn = [*guessed, 105] if guessed else [100]
        one.observe(told(request, drawn, rows=1 + len(guessed), seconds=1 + 0.16 * len(guessed)))
        request.append(5)
    assert len(small.asked) > 200


def test_a_promise_of_a_text_is_kept_where_the_model_is_less_sure() -> None:
    class Unsure(Small):
        def propose(self, requests, limits, goes_on):
            return [Draft((1,), ("model:0",)) for _ in requests]

    one = speculator(1.0, 0.1, Texts(texts(2)), model=Unsure(0.001))
    believe(one._rates, "text:near:9", 0.6)
    believe(one._rates, "model", 0.8)  # of all
    believe(one._rates, "model:0", 0.05)
    (guessed,) = one.propose([a_request()], [8], 1)
    assert guessed == (20, 21)


def test_many_requests_are_guessed_for_less_deeply_than_one() -> None:
    def depths(requests: int) -> list[int]:
        one = speculator(1.0, 0.16, model=Small(0.02))
        believe(one._rates, "model", 0.8)
        believe(one._rates, "model:2", 0.8)
        asked = [a_request(str(number)) for number in range(requests)]
        return [len(each) for each in one.propose(asked, [LOTS] * requests, requests)]

    class Counting(Small):
        """Counts what it computes."""

        passes = 0

        def propose(self, requests, limits, goes_on):
            made = super().propose(requests, limits, goes_on)
            self.passes += sum(len(each.token_ids) for each in made)
            return made

    assert depths(1)[0] > max(depths(3)) >= 0
    small = Counting(0.02)
    one = speculator(1.0, 0.16, model=small)
    believe(one._rates, "model", 0.8)
    believe(one._rates, "model:2", 0.8)
    asked = [a_request(str(number)) for number in range(3)]
    taken = sum(len(each) for each in one.propose(asked, [LOTS] * 3, 3))
    assert small.passes <= taken + 3  # no more than a guess each is computed in vain


def test_states_are_kept_for_a_model_only_where_it_may_pay() -> None:
    small = Small(0.05)
    one = speculator(1.0, 0.16, model=small)
    one.observe(told(a_request(), [5]))
    believe(one._rates, "model", 0.02)
    one.observe(told(a_request(), [5]))
    assert small.wanted == [True, False]
    for _ in range(2000):  # it cannot be learnt that it is right again where nothing is kept
        one.observe(told(a_request(), [5]))
        if small.wanted[-1]:
            one._rates.add("model", is_right=False)
    assert any(small.wanted[2:])
    assert sum(small.wanted) < 1000


# What breaks


class Broken(Texts):
    def __init__(self, after: int) -> None:
        super().__init__(texts(4))
        self.left = after

    def propose(self, request: Request, limit: int) -> Draft:
        self.left -= 1
        if self.left < 0:
            raise ZeroDivisionError
        return super().propose(request, limit)

    def forget(self, request: Request) -> None:
        if self.left < 0:
            raise ZeroDivisionError


class BrokenModel(Small):
    def observe(self, step: StepResult, *, wanted: bool) -> None:
        raise ZeroDivisionError

    def forget(self, request: Request) -> None:
        raise ZeroDivisionError


@pytest.mark.parametrize("model", [PrefixModel, StateModel])
@pytest.mark.parametrize("after", [0, 5])
def test_a_source_that_fails_is_turned_off_and_answers_go_on(
    model: type[PrefixModel], after: int, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(1)
    prompts = [random_prompt(rng, 20) for _ in range(3)]
    params = SamplingParams(max_tokens=20, temperature=0)
    plain = make_engine(model())
    expected = [plain.add(prompt, params) for prompt in prompts]
    run(plain)
    with caplog.at_level(logging.ERROR):
        engine = make_engine(model(), drafter=Speculator([Broken(after)], BrokenModel()))
        actual = [engine.add(prompt, params) for prompt in prompts]
        run(engine)
    assert [each.output_ids for each in actual] == [each.output_ids for each in expected]
    assert 1 <= len(caplog.records) <= 4  # said, and not with every step


def test_an_end_that_a_source_cannot_take_ends_no_other_answer() -> None:
    class Holding(Texts):
        def forget(self, request: Request) -> None:
            raise ZeroDivisionError

    engine = make_engine(drafter=Speculator([Holding(texts(3))]))
    params = SamplingParams(max_tokens=9, temperature=0)
    requests = [engine.add([number, 2, 3], params) for number in range(3)]
    run(engine)
    assert [len(each.output_ids) for each in requests] == [9] * 3


def test_an_end_is_told_to_every_source() -> None:
    source, small = Texts(texts(3)), Small()
    one = speculator(1.0, 0.16, source, model=small)
    request = a_request()
    one.propose([request], [4], 1)
    one.forget(request)
    assert source.forgotten == small.forgotten == [request]
    assert not one._records
    one.forget(a_request("never seen"))
