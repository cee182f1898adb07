"""min_tokens: no token ends an answer before it has as many."""

from __future__ import annotations

import pytest
from prefix_model import VOCAB_SIZE, make_engine, run

from dure.engine.request import SamplingParams
from dure.errors import InvalidRequestError

EVERYTHING_BUT_7 = [each for each in range(VOCAB_SIZE) if each != 7]


@pytest.mark.parametrize("least", [0, 1, 5])
def test_an_answer_has_as_many_tokens_before_one_that_ends_it(least: int) -> None:
    engine = make_engine(eos_ids=frozenset(EVERYTHING_BUT_7[:40]))
    params = SamplingParams(
        max_tokens=20, min_tokens=least, stop_token_ids=EVERYTHING_BUT_7[40:], seed=2
    )
    request = engine.add([1, 2, 3], params)
    run(engine)
    assert [7] * least == request.output_ids[:least]
    assert request.output_ids[:-1].count(7) == len(request.output_ids) - 1
    assert "stop" == request.finish_reason


def test_it_is_a_whole_number_that_is_not_negative() -> None:
    with pytest.raises(InvalidRequestError, match="min_tokens must be from 0"):
        SamplingParams(min_tokens=-1)
