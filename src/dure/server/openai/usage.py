"""Usage, timings and progress as OpenAI's APIs and llama-server write them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from dure.chat.usage import Usage
from dure.server.wire.cost import cost_fields, energy_fields

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dure.chat.output import Chunk, Completion
    from dure.metering.prices import Prices
    from dure.server.openai.schemas import Sampling
    from dure.server.serving.generation import Generation, Progress
    from dure.weights.expert_stats import ExpertUse


def usage_of(generation: Generation, done: Sequence[Completion]) -> Usage:
    """Return the usage of a request with these finished choices; without any, of its prompt."""
    prompt = generation.prepared.num_tokens
    return Usage.of_choices((one.usage for one in done), prompt_tokens=prompt)


def completion_usage(usage: Usage, prices: Prices | None = None) -> dict[str, Any]:
    """Write the `usage` of a chat completion or a completion.

    Its prediction tokens are all that were guessed and tried, be it from a `prediction`, another
    text or a model. Rejected ones are no part of `completion_tokens`. prices: what is charged.
    """
    details: dict[str, int] = {
        "reasoning_tokens": usage.reasoning_tokens,
        "accepted_prediction_tokens": usage.accepted_tokens,
        "rejected_prediction_tokens": usage.drafted_tokens - usage.accepted_tokens,
    }
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": details,
        **cost_fields(usage, prices),
    }


def response_usage(usage: Usage, prices: Prices | None = None) -> dict[str, Any]:
    """Write the `usage` of the Responses API."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
        **cost_fields(usage, prices),
    }


def timings(usage: Usage) -> dict[str, Any]:
    """Write the `timings` of llama-server, joules, and what steps took of experts on disk."""
    took, read, written = usage.timings, usage.computed_tokens, usage.output_tokens
    drafts = {"draft_n": usage.drafted_tokens, "draft_n_accepted": usage.accepted_tokens}
    return {
        "cache_n": usage.cached_tokens,
        "prompt_n": read,
        "prompt_ms": round(1000 * took.prefill_s, 3),
        "prompt_per_token_ms": round(1000 * took.prefill_s / max(1, read), 3),
        "prompt_per_second": round(took.prefill_tps, 3),
        "predicted_n": written,
        "predicted_ms": round(1000 * took.decode_s, 3),
        "predicted_per_token_ms": round(1000 * took.decode_s / max(1, written), 3),
        "predicted_per_second": round(took.decode_tps, 3),
        "processor_ms": round(1000 * usage.cost.cpu_s, 3),
        **energy_fields(usage),
        **(drafts if usage.drafted_tokens else {}),
        **({} if usage.experts is None else {"experts": _experts(usage.experts)}),
    }


def _experts(use: ExpertUse) -> dict[str, Any]:
    return {
        "hits": use.hits,
        "misses": use.misses,
        "read_bytes": use.read_bytes,
        "wait_ms": round(1000 * use.wait_s, 3),
        "guessed_right": use.guessed_right,
        "guessed_wrong": use.guessed_wrong,
    }


def beside(chunk: Chunk, body: Sampling, prices: Prices | None = None) -> dict[str, Any]:
    """Return the optional fields of a stream's event, if the body asks for them with every token.

    These are llama-server's timings and vLLM's usage so far.
    """
    usage, options = chunk.usage, body.stream_options
    if usage is None:
        return {}
    found: dict[str, Any] = {}
    if body.timings_per_token:
        found["timings"] = timings(usage)
    if options is not None and options.include_usage and options.continuous_usage_stats:
        found["usage"] = completion_usage(usage, prices)
    return found


def progress(at: Progress, began: float) -> dict[str, Any]:
    """Write the `prompt_progress` of llama-server."""
    return {
        "total": at.total,
        "cache": at.cached,
        "processed": at.done,
        "time_ms": round(1000 * (time.perf_counter() - began)),
    }
