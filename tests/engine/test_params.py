"""SamplingParams: every range is held, and the model's own defaults are taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dure
from dure.engine.request import SamplingParams, choice_seed
from dure.errors import InvalidRequestError, ModelFileError

GOOD: dict[str, list[Any]] = {
    "max_tokens": [None, 1, 10**6, np.int64(5)],
    "temperature": [None, 0, 0.0, 1e-9, 100, np.float32(0.5)],
    "top_k": [None, -1, 0, 1, 10**9],
    "top_p": [None, 1e-9, 1, 1.0],
    "min_p": [None, 0, 1],
    "repetition_penalty": [None, 0.01, 1, 100],
    "presence_penalty": [None, -2, 0, 2.0],
    "frequency_penalty": [None, -2, 0, 2.0],
    "logit_bias": [{}, {0: -100, 5: 100.0}, dict.fromkeys(range(1024), 1.0)],
    "seed": [None, 0, -(2**63), 2**64 - 1],
    "logprobs": [None, 0, 20],
    "stop": [(), [], "one", ["x"] * 16, ["y" * 256]],
    "stop_token_ids": [(), [0, 5]],
    "ignore_eos": [True, False],
    "n": [1, 8],
}
NAN, INF = float("nan"), float("inf")
HUGE = 10**5000
BAD: dict[str, list[Any]] = {
    "max_tokens": [0, -1, 1.5, True, "5", HUGE],
    "temperature": [-0.1, 100.1, NAN, INF, True, "1", HUGE, 1j],
    "top_k": [-2, 1.0, True, HUGE],
    "top_p": [0, -0.1, 1.1, NAN, False],
    "min_p": [-0.1, 1.1, NAN, True],
    "repetition_penalty": [0, 5e-324, 0.009, -1, NAN, INF, True],
    "presence_penalty": [-2.1, 2.1, NAN, True],
    "frequency_penalty": [-2.1, 2.1, NAN, True],
    "logit_bias": [
        {0: 100.1},
        {0: NAN},
        {-1: 1},
        {"0": 1},
        {True: 1},
        {1: True},
        {2**31: 1},
        [1, 2],
        dict.fromkeys(range(1025), 1.0),
    ],
    "seed": [-(2**63) - 1, 2**64, 1.0, True, "a"],
    "logprobs": [-1, 21, True, 1.0],
    "stop": ["", [""], ["x"] * 17, ["y" * 257], [1], 5, None],
    "stop_token_ids": [5, "5", [-1], [1.0], [True], [2**31], [0] * 1025],
    "ignore_eos": [0, 1, None, "yes"],
    "n": [0, 9, True, 1.0],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in GOOD.items() for v in vs])
def test_values_in_range_are_taken(name: str, value: Any) -> None:
    SamplingParams(**{name: value})


@pytest.mark.parametrize(
    ("name", "index"),
    [(name, index) for name, values in BAD.items() for index in range(len(values))],
)
def test_values_out_of_range_are_refused_with_a_short_sentence(name: str, index: int) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(**{name: BAD[name][index]})
    assert name.split("_", maxsplit=1)[0] in caught.value.message
    assert caught.value.message.endswith(".")
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"temperature": -1}, "temperature must be from 0 to 100, but is -1."),
        ({"top_p": 0}, "top_p must be over 0 and at most 1, but is 0."),
        ({"n": 9}, "n must be from 1 to 8, but is 9."),
        ({"max_tokens": True}, "max_tokens must be a whole number, but is True."),
        ({"stop": ["x"] * 17}, "stop has 17 strings; at most 16 are allowed."),
    ],
)
def test_an_error_names_field_limit_and_value(params: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(**params)
    assert says == caught.value.message


def test_a_single_stop_string_is_one_string_and_not_its_letters() -> None:
    assert SamplingParams(stop="end").stop == ("end",)


def test_params_keep_what_they_were_given_when_the_caller_changes_it_later() -> None:
    bias, stop = {1: 1.0}, ["a"]
    params = SamplingParams(logit_bias=bias, stop=stop)
    bias[2] = 5.0
    stop.append("b")
    assert (params.logit_bias, params.stop) == ({1: 1.0}, ("a",))


def test_unset_fields_take_the_models_defaults_and_set_ones_stay() -> None:
    defaults = {
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
        "repetition_penalty": 1.05,
        "do_sample": True,
        "eos_token_id": [1, 2],
        "min_p": None,
    }
    params = SamplingParams(top_k=7, max_tokens=3).resolve(defaults)
    expected = SamplingParams(
        **{"max_tokens": 3, "temperature": 0.6, "top_k": 7, "top_p": 0.95, "min_p": 0.0},
        **{"repetition_penalty": 1.05, "presence_penalty": 0.0, "frequency_penalty": 0.0},
    )
    assert expected == params
    assert params.resolve({"temperature": 2.0}) == params


def test_a_models_stops_seed_length_and_penalties_hold_where_a_request_gives_none() -> None:
    defaults = {"stop": ["User:"], "seed": 7, "max_tokens": 9, "presence_penalty": 1.5}
    resolved = SamplingParams().resolve(defaults)
    assert (resolved.stop, resolved.seed, resolved.max_tokens) == (("User:",), 7, 9)
    assert (resolved.presence_penalty, resolved.frequency_penalty) == (1.5, 0.0)
    given = SamplingParams(stop=["x"], seed=1, max_tokens=2, presence_penalty=0.5)
    resolved = given.resolve(defaults)
    assert (resolved.stop, resolved.seed, resolved.max_tokens) == (("x",), 1, 2)
    assert resolved.presence_penalty == 0.5
    none = SamplingParams(presence_penalty=0.0).resolve(defaults)
    assert none.presence_penalty == 0.0  # that there be none was said


def test_without_defaults_sampling_is_neutral() -> None:
    expected = SamplingParams(
        **{"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1},
        **{"presence_penalty": 0.0, "frequency_penalty": 0.0},
    )
    assert expected == SamplingParams().resolve({})
    assert SamplingParams(top_k=-1).resolve({"top_k": 50}).top_k == 0


def test_a_model_that_does_not_sample_is_greedy_unless_told() -> None:
    assert SamplingParams().resolve({"do_sample": False, "temperature": 0.7}).temperature == 0.0
    assert SamplingParams(temperature=0.5).resolve({"do_sample": False}).temperature == 0.5


@pytest.mark.parametrize("defaults", [{"temperature": "hot"}, {"top_p": 7}, {"top_k": 1.5}])
def test_a_bad_default_is_the_model_files_fault(defaults: dict[str, Any]) -> None:
    with pytest.raises(ModelFileError, match="generation_config"):
        SamplingParams().resolve(defaults)


def test_choice_seeds_are_fixed_and_distinct() -> None:
    """The values are a promise: the same seed gives the same choices in every version."""
    seeds = [choice_seed(5, choice) for choice in range(8)]
    assert seeds[:2] == [5, 6170373840279617265]
    assert len(set(seeds)) == 8
    assert choice_seed(-1, 0) == 2**64 - 1


def test_sampling_params_are_a_public_name() -> None:
    assert dure.SamplingParams is SamplingParams
