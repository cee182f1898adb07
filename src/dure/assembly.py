"""From a loaded model to what answers with it: a builder of requests, and an engine's driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dure.chat.prompt import RequestBuilder
from dure.chat.template import default_template
from dure.driver import Driver
from dure.engine.engine import Engine
from dure.engine.spec_decode.make import make_drafter
from dure.replicas import Drivers, Replicas

if TYPE_CHECKING:
    from dure.engine.passes import Runner
    from dure.loading.load import LoadedModel
    from dure.metering.meter import Meter


def make_builder(
    loaded: LoadedModel, fallback_sampling: Mapping[str, float] | None
) -> RequestBuilder:
    """Make the builder of a model's requests.

    fallback_sampling: defaults of a model whose makers recommend none of these fields.
    """
    settings = loaded.settings
    fallback = fallback_sampling or {}
    usable = {} if fallback.keys() & loaded.sampling.keys() else fallback
    return RequestBuilder(
        loaded.tokenizer,
        template=(
            settings.template
            or loaded.checkpoint.chat_template
            or settings.fallback_template
            or default_template(loaded.tokenizer)
        ),
        name=loaded.name,
        context=loaded.context,
        longest=loaded.model.context_length,
        vocab_size=loaded.model.vocab_size,
        sampling_defaults={**usable, **loaded.sampling},
        system=settings.system,
        messages=settings.messages,
    )


def make_driver(
    loaded: LoadedModel,
    runners: Sequence[Runner],
    builder: RequestBuilder,
    *,
    speculate: str,
    max_sequences: int,
    meter: Meter,
) -> Drivers:
    """Make an engine of a model over each of its runners, and what drives them.

    The rest is as LLM takes it, for each engine.
    """
    drivers = [
        _driver_of(
            loaded,
            runner,
            builder,
            speculate=speculate,
            max_sequences=max_sequences,
            meter=meter,
        )
        for runner in runners
    ]
    return drivers[0] if len(drivers) == 1 else Replicas(drivers)


def _driver_of(
    loaded: LoadedModel,
    runner: Runner,
    builder: RequestBuilder,
    *,
    speculate: str,
    max_sequences: int,
    meter: Meter,
) -> Driver:
    engine = Engine(
        runner,
        drafter=make_drafter(speculate, runner, threads=loaded.threads),
        max_prefill_tokens=loaded.memory.prefill_rows,
        max_sequences=max_sequences,
        model_id=loaded.name,
        eos_ids=loaded.tokenizer.eos_ids,
        unused_ids=loaded.tokenizer.rows_without_token(loaded.model.vocab_size),
        threads=loaded.threads,
        meter=meter,
        row_bytes=loaded.memory.row_bytes,
    )
    return Driver(engine, loaded.tokenizer, on_complete=builder.remember)
