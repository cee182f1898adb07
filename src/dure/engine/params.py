"""SamplingParams: everything a request may ask of sampling, each with its range."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any

from dure.calls import explained_class
from dure.errors import InvalidRequestError, ModelFileError

MAX_TEMPERATURE = 100.0
MAX_LOGPROBS = 20
MAX_CHOICES = 8
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256
MAX_STOP_TOKENS = 1024
MAX_LOGIT_BIASES = 1024
MAX_LOGIT_BIAS = 100.0
MAX_ID = 2**31 - 1  # token ids are int32; the vocabulary's own size is checked by the engine

_NEUTRAL: Mapping[str, float] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
_UNSET: Mapping[str, Any] = {
    "seed": None,
    "max_tokens": None,
    "stop": (),
}
"""What these fields are where a request does not give them."""


@explained_class
@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of a request are drawn and when it ends; checked when made.

    Log-probabilities are those of the raw logits, before penalties, bias and temperature; their
    softmax goes over all the model's rows, also those that no token has.
    A field that is None and has a default in the model's generation_config.json takes it. Raises
    InvalidRequestError, naming the field, its range and its value.
    """

    max_tokens: int | None = None  # most tokens of the answer; None: until the context is full
    min_tokens: int = 0  # tokens before which no token ends the answer; a stop string may
    temperature: float | None = None  # 0 to 100; 0: greedy
    top_k: int | None = None  # sample from the k most likely tokens; 0 or -1: off
    top_p: float | None = None  # sample from the most likely tokens up to this mass; 1: off
    min_p: float | None = None  # drop tokens below this share of the top probability; 0: off
    repetition_penalty: float | None = None  # over prompt and output, 0.01 to 100; 1: off
    presence_penalty: float | None = None  # over output, -2 to 2; 0: off
    frequency_penalty: float | None = None  # over output, -2 to 2; 0: off
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)  # id -> -100 to 100
    seed: int | None = None  # None: a new one for every request
    logprobs: int | None = None  # k: of the chosen token and the k most likely, 0 to 20
    prompt_logprobs: int | None = None  # the same for each token of the prompt but the first
    stop: Sequence[str] = ()  # strings before which the answer ends; a single one may stand alone
    stop_token_ids: Sequence[int] = ()  # token ids that end the answer
    ignore_eos: bool = False  # go on after an end-of-generation token; stop_token_ids still stop
    n: int = 1  # choices: independent continuations of the one prompt

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            self._integer("max_tokens", 1, MAX_ID, "leave it out to go on until the context ends")
        self._integer("min_tokens", 0, MAX_ID, "0 lets the model end when it will")
        self._check_distribution()
        for name in ("presence_penalty", "frequency_penalty"):
            if getattr(self, name) is not None:
                self._number(name, -2.0, 2.0, "0 turns it off")
        if self.seed is not None:
            self._integer("seed", -(2**63), 2**64 - 1, "leave it out for a random one")
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                self._integer(name, 0, MAX_LOGPROBS, "0 gives the chosen token's alone")
        self._integer("n", 1, MAX_CHOICES, "send more requests for more choices")
        if not isinstance(self.ignore_eos, bool):
            raise InvalidRequestError(
                f"ignore_eos must be true or false, but is {_shown(self.ignore_eos)}.",
                hint="ignore_eos=True",
            )
        self._check_stops()
        self._check_logit_bias()

    def resolve(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """Fill the fields that a request left open.

        defaults: of the model, by field; unknown keys are passed over, and `do_sample: false`
            means temperature 0.

        Returns parameters with the model's defaults, else the neutral values. Raises ModelFileError
        if a default is out of range, InvalidRequestError if they are no mapping.
        """
        if not isinstance(defaults, Mapping):
            raise InvalidRequestError(
                f"defaults must be a dictionary, but are {_shown(defaults)}.",
                hint='{"temperature": 0.7}',
            )
        known = (*_NEUTRAL, *_UNSET)
        given = {name: defaults[name] for name in known if defaults.get(name) is not None}
        if defaults.get("do_sample") is False:
            given["temperature"] = 0.0
        try:
            model = SamplingParams(**given)
        except InvalidRequestError as error:
            raise ModelFileError(
                f"The model's generation_config has a bad default: {error.message}",
                hint="correct or remove generation_config.json, or the preset's parameter",
            ) from error
        filled: dict[str, Any] = {}
        for name, neutral in _NEUTRAL.items():
            if getattr(self, name) is None:
                default = getattr(model, name)
                filled[name] = neutral if default is None else default
        for name, unset in _UNSET.items():
            if name in given and getattr(self, name) == unset:
                filled[name] = getattr(model, name)
        return replace(self, **filled) if filled else self

    def _check_distribution(self) -> None:
        if self.temperature is not None:
            self._number("temperature", 0.0, MAX_TEMPERATURE, "0 always takes the likeliest token")
        if self.top_k is not None:
            self._integer("top_k", -1, MAX_ID, "0 or -1 turns it off")
            if self.top_k == -1:
                object.__setattr__(self, "top_k", 0)
        if self.top_p is not None:
            self._number("top_p", 0.0, 1.0, "1 turns it off", above=True)
        if self.min_p is not None:
            self._number("min_p", 0.0, 1.0, "0 turns it off")
        if self.repetition_penalty is not None:
            self._number("repetition_penalty", 0.01, 100.0, "1 turns it off")

    def _check_stops(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stop, Sequence) or not all(isinstance(text, str) for text in stop):
            raise InvalidRequestError(
                f"stop must be strings, but is {_shown(self.stop)}.", hint='stop=["\\n\\n"]'
            )
        if len(stop) > MAX_STOP_STRINGS:
            raise InvalidRequestError(
                f"stop has {len(stop)} strings; at most {MAX_STOP_STRINGS} are allowed."
            )
        for text in stop:
            if not 1 <= len(text) <= MAX_STOP_CHARACTERS:
                raise InvalidRequestError(
                    f"A stop string has {len(text)} characters; "
                    f"1 to {MAX_STOP_CHARACTERS} are allowed.",
                    hint="an empty stop string would end every answer before it begins",
                )
        ids = self.stop_token_ids
        if not isinstance(ids, Sequence) or isinstance(ids, (str, bytes)):
            raise InvalidRequestError(
                f"stop_token_ids must be a list, but is {_shown(ids)}.", hint="stop_token_ids=[2]"
            )
        if len(ids) > MAX_STOP_TOKENS:
            raise InvalidRequestError(
                f"stop_token_ids has {len(ids)} ids; at most {MAX_STOP_TOKENS} are allowed."
            )
        checked = tuple(_integer("A stop token id", token, 0, MAX_ID, "[2]") for token in ids)
        object.__setattr__(self, "stop", tuple(stop))
        object.__setattr__(self, "stop_token_ids", checked)

    def _check_logit_bias(self) -> None:
        bias = self.logit_bias
        if not isinstance(bias, Mapping):
            raise InvalidRequestError(
                f"logit_bias must map token ids to numbers, but is {_shown(bias)}.",
                hint="logit_bias={42: -100}",
            )
        if len(bias) > MAX_LOGIT_BIASES:
            raise InvalidRequestError(
                f"logit_bias has {len(bias)} entries; at most {MAX_LOGIT_BIASES} are allowed."
            )
        limit = MAX_LOGIT_BIAS
        checked = {
            _integer("A token id in logit_bias", token, 0, MAX_ID, "{42: -100}"): _number(
                "A value in logit_bias", value, -limit, limit, "-100 all but bans a token"
            )
            for token, value in bias.items()
        }
        object.__setattr__(self, "logit_bias", checked)

    def _integer(self, name: str, low: int, high: int, hint: str) -> None:
        value = _integer(name, getattr(self, name), low, high, hint)
        object.__setattr__(self, name, value)  # a numpy integer becomes a plain one

    def _number(
        self, name: str, low: float, high: float, hint: str, *, above: bool = False
    ) -> None:
        value = _number(name, getattr(self, name), low, high, hint, above=above)
        object.__setattr__(self, name, value)


def _integer(name: str, value: Any, low: int, high: int, hint: str) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InvalidRequestError(
            f"{name} must be a whole number, but is {_shown(value)}.", hint=hint
        )
    number = int(value)
    if not low <= number <= high:
        raise InvalidRequestError(
            f"{name} must be from {low} to {high}, but is {_shown(value)}.", hint=hint
        )
    return number


def _number(
    name: str, value: Any, low: float, high: float, hint: str, *, above: bool = False
) -> float:
    """Return the value as float: from low to high, or above low with `above`; never NaN."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InvalidRequestError(f"{name} must be a number, but is {_shown(value)}.", hint=hint)
    try:
        number = float(value)
    except OverflowError:  # an integer of more than 308 digits
        number = math.inf
    if not low <= number <= high or (above and number == low):
        span = f"over {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"
        raise InvalidRequestError(f"{name} must be {span}, but is {_shown(value)}.", hint=hint)
    return number


def _shown(value: Any) -> str:
    """Return the value as text for an error: at most 60 characters."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."
