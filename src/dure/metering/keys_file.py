"""The file of a server's keys: each with a name, prices and limits, as JSON.

It is JSON alone because Python 3.10 reads no TOML, and a server's keys should not depend on which
Python it runs in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from dure.errors import DureError, InvalidRequestError
from dure.formats.jsonfile import read_object
from dure.metering.limits import Limits
from dure.metering.prices import Prices

MAX_BYTES = 1 << 20
MAX_KEYS = 4096  # each is compared with what a request brings
MAX_MODELS = 256
MAX_NAME = 64

_FORM = '{"keys": [{"name": "ada", "key": "…", "limits": {"tokens_per_day": 100000}}]}'


@dataclass(frozen=True)
class PriceList:
    """Prices by model: those of the first pattern that fits its name, * meaning anything."""

    entries: tuple[tuple[str, Prices], ...] = ()

    def of(self, model: str) -> Prices | None:
        """Return the prices of a model; None if it has none."""
        return next((each for name, each in self.entries if fnmatchcase(model, name)), None)


NO_PRICES = PriceList()
NO_LIMITS = Limits()


@dataclass(frozen=True)
class KeyPolicy:
    """What a key is called, what it pays and what it may use.

    `is_admin`: whether it sees what the others use, and may change the server's models.
    """

    name: str
    prices: PriceList = NO_PRICES
    limits: Limits = NO_LIMITS
    is_admin: bool = False


@dataclass(frozen=True)
class KeysFile:
    """The keys of a file, and the policy of each."""

    policies: Mapping[str, KeyPolicy] = field(default_factory=dict)  # by key


def read_keys(path: Path, prices: PriceList = NO_PRICES) -> KeysFile:
    """Read a file of keys. prices: for keys whose file names none.

    Raises InvalidRequestError that names what is wrong, and never a key.
    """
    try:
        given = read_object(path, limit=MAX_BYTES, memory=64 << 20, refuse_duplicates=True)
    except OSError as error:
        raise InvalidRequestError(f"{path} cannot be read: {error.strerror}.") from None
    except DureError as error:
        # Neither a hint for downloads, nor a piece of the file: it may be one of a key.
        raise InvalidRequestError(
            f"{path} cannot be read as a file of keys: {error.message.split(':')[0][-200:]}.",
            hint=_FORM,
        ) from None
    _check_names(given, ("keys", "prices"), str(path))
    common = _price_list(given["prices"], str(path)) if "prices" in given else prices
    listed = given.get("keys")
    if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_KEYS:
        raise InvalidRequestError(
            f"{path} must hold from 1 to {MAX_KEYS} keys, as a list.", hint=_FORM
        )
    policies: dict[str, KeyPolicy] = {}
    for number, each in enumerate(listed, 1):
        key, policy = _policy(each, common, f"key {number} of {path}")
        if key in policies or policy.name in [known.name for known in policies.values()]:
            raise InvalidRequestError(f"Key {number} of {path} is there twice, or its name is.")
        policies[key] = policy
    return KeysFile(policies)


def _policy(given: object, common: PriceList, what: str) -> tuple[str, KeyPolicy]:
    if not isinstance(given, dict):
        raise InvalidRequestError(f"{what[0].upper()}{what[1:]} must be an object.", hint=_FORM)
    _check_names(given, ("name", "key", "prices", "limits", "admin"), what)
    name, key = given.get("name"), given.get("key")
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        raise InvalidRequestError(
            f"The name of {what} must be a text of 1 to {MAX_NAME} printable characters.",
            hint=_FORM,
        )
    if not isinstance(key, str):
        raise InvalidRequestError(f"{name} has no key.", hint=_FORM)
    limits = given.get("limits", {})
    if not isinstance(limits, dict):
        raise InvalidRequestError(f"The limits of {name} must be an object.", hint=_FORM)
    is_admin = given.get("admin", False)
    if not isinstance(is_admin, bool):
        raise InvalidRequestError(f'"admin" of {name} must be true or false.', hint=_FORM)
    prices = _price_list(given["prices"], name) if "prices" in given else common
    return key, KeyPolicy(name, prices, Limits.of(limits), is_admin)


def _price_list(given: object, what: str) -> PriceList:
    """Read prices: of all models, or an object of them by model."""
    if not isinstance(given, dict) or len(given) > MAX_MODELS:
        raise InvalidRequestError(
            f"The prices of {what} must be an object, of at most {MAX_MODELS} models.",
            hint='{"input": 0.1, "output": 0.4}, or {"qwen*": {"input": 0.1}, "*": {…}}',
        )
    if not any(isinstance(each, dict) for each in given.values()):
        return PriceList((("*", Prices.of(given)),))
    entries: list[tuple[str, Prices]] = []
    for pattern, each in given.items():
        if not isinstance(each, dict):
            raise InvalidRequestError(f"{pattern!r:.60} of {what} must be an object of prices.")
        entries.append((pattern, Prices.of(each)))
    if len({prices.currency for _, prices in entries}) > 1:
        raise InvalidRequestError(
            f"The prices of {what} are in several currencies; a key has one.",
            hint="a limit in money needs it",
        )
    return PriceList(tuple(entries))


def _check_names(given: Mapping[str, Any], known: tuple[str, ...], what: str) -> None:
    for name in given:
        if name not in known:
            raise InvalidRequestError(
                f"{name!r:.40} in {what} is not known.", hint=f"there are {', '.join(known)}"
            )
