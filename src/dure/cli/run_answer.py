"""The answer of dure run: streamed to the terminal, or as one JSON object."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dure.cli import console
from dure.cli.answer_view import AnswerView
from dure.cli.ctrl_c import ends_soon

if TYPE_CHECKING:
    from dure.chat.output import Completion
    from dure.chat.request import Format
    from dure.cli.served_model import ServedModel
    from dure.engine.params import SamplingParams
    from dure.llm import LLM
    from dure.metering.prices import Prices


def answer(
    llm: LLM | ServedModel,
    prepared: str | list[dict[str, str]],
    params: SamplingParams,
    *,
    think: bool | int | None,
    view: AnswerView | None,
    form: Format | None = None,
) -> Completion:
    """Stream the answer to the `view`, if there is one, and return the completion."""
    completion = None
    disk = console.disk_reads(llm)
    line = console.ProgressLine("reading the prompt", delay_s=0.5, beside=disk, time_left=True)

    def leave() -> None:
        line.erase()
        if view is not None:
            view.break_off()

    with ends_soon(leave), line:
        stream = llm.stream(prepared, params, think=think, format=form, on_prefill=line.update)
        try:
            with closing(stream):
                for chunk in stream:
                    line.erase()
                    if view is not None:
                        view.show(chunk.events)
                    completion = chunk.completion
        except BaseException:
            if view is not None:
                view.break_off()
            raise
    if completion is None:
        raise RuntimeError("the stream ended without a completion")
    if view is not None:
        view.end()
    return completion


def tell_if_full(llm: LLM | ServedModel, completion: Completion, max_tokens: int | None) -> None:
    """Say that the context ended the answer, if no length did: one given, or the model's own."""
    most = max_tokens or llm.sampling_defaults.get("max_tokens")
    is_cut = completion.finish_reason == "length"
    if is_cut and (most is None or completion.usage.output_tokens < most):
        console.note(f"(the context of {llm.context:,} tokens is full)")


def as_json(
    llm: LLM | ServedModel, completion: Completion, load_s: float, prices: Prices | None = None
) -> dict[str, Any]:
    """Build the object that --json prints."""
    usage, timings = completion.usage, completion.usage.timings
    seconds: Sequence[tuple[str, float]] = (
        ("load_s", load_s),
        ("prefill_s", timings.prefill_s),
        ("decode_s", timings.decode_s),
        ("prefill_tps", timings.prefill_tps),
        ("decode_tps", timings.decode_tps),
    )
    charged: dict[str, Any] = {}
    if prices is not None:
        charged = {"money": usage.money(prices), "currency": prices.currency}
    experts = {} if usage.experts is None else {"experts": asdict(usage.experts)}
    return {
        "model": llm.name,
        "text": completion.content,
        "reasoning": completion.reasoning,
        "finish_reason": completion.finish_reason,
        "tokens": {
            "prompt": usage.prompt_tokens,
            "cached": usage.cached_tokens,
            "completion": usage.output_tokens,
            "drafted": usage.drafted_tokens,
            "accepted": usage.accepted_tokens,
        },
        "timings": {name: round(value, 4) for name, value in seconds},
        "cost": {
            "processor_seconds": round(usage.cost.cpu_s, 4),
            "joules": usage.cost.joules,
            "energy": usage.cost.energy_source,
            **charged,
        },
        **experts,
    }
