"""Fields that other servers accept and this one does not, and misspelt field names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dure.errors import InvalidRequestError

MAX_NAMED = 16  # unknown fields that a header names
MAX_SHOWN = 40  # characters of each


@dataclass(frozen=True)
class Foreign:
    """An unsupported field: the values that change nothing, and what to use instead."""

    neutral: tuple[Any, ...]
    instead: str


_DRAW = "use temperature, top_p, top_k or min_p"
_PENALTY = "use repetition_penalty, presence_penalty or frequency_penalty"
_CUT = "a prompt is never cut; send what fits"
_SHOWN = "reasoning, content and tool calls are always separate"
_ADAPTER = "no adapters are loaded"

_TABLE: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    # sampling
    *((name, (1,), _DRAW) for name in ("typical_p", "typical", "tfs", "tfs_z", "cfg_scale")),
    *((name, (0,), _DRAW) for name in ("top_a", "eta_cutoff", "epsilon_cutoff", "penalty_alpha")),
    *((name, (0,), _DRAW) for name in ("mirostat", "mirostat_mode", "dynatemp_range")),
    *((name, (0,), _DRAW) for name in ("smoothing_factor", "xtc_probability", "top_n_sigma")),
    *((name, (), _DRAW) for name in ("samplers", "sampler_seq", "sampler_priority")),
    ("guidance_scale", (1,), _DRAW),
    ("do_sample", (True,), "send temperature 0 for the likeliest token"),
    ("negative_prompt", (), "write it into the prompt"),
    ("watermark", (), "answers carry no watermark"),
    # penalties
    *((name, (0,), _PENALTY) for name in ("dry_multiplier", "no_repeat_ngram_size")),
    ("encoder_repetition_penalty", (1,), _PENALTY),
    # several choices, and beam search
    ("best_of", (1,), "ask for n, and take the best"),
    ("length_penalty", (1,), "tokens are drawn one after the other, without beams"),
    ("num_beams", (1,), "tokens are drawn one after the other, without beams"),
    ("early_stopping", (), "tokens are drawn one after the other, without beams"),
    # where the output ends, and what is shown of it
    ("include_stop_str_in_output", (), "add the stop string yourself"),
    ("no_stop_trim", (), "add the stop string yourself"),
    ("stop_regex", (), "use stop, or guided_regex"),
    ("skip_special_tokens", (True,), "ask for return_token_ids, and use /detokenize"),
    ("t_max_predict_ms", (0, -1), "use max_tokens"),
    ("t_max_prompt_ms", (0, -1), "use max_tokens"),
    ("n_indent", (0,), "use stop or guided_regex"),
    ("response_fields", (), "the whole answer is sent"),
    ("separate_reasoning", (True,), _SHOWN),
    ("stream_reasoning", (True,), _SHOWN),
    ("include_reasoning", (True,), _SHOWN),
    ("parse_tool_calls", (True,), _SHOWN),
    ("reasoning_format", ("auto", "deepseek"), _SHOWN),
    ("return_tokens_as_token_ids", (), "ask for return_token_ids"),
    ("post_sampling_probs", (), "log-probabilities are those before sampling"),
    ("top_n_tokens", (0,), "use logprobs"),
    ("n_probs", (0,), "use logprobs"),
    ("structural_tag", (), "use tools, response_format or guided_grammar"),
    # the prompt
    *((name, (), _CUT) for name in ("transforms", "truncate", "context_shift")),
    ("n_keep", (0, -1), _CUT),
    ("n_discard", (0,), _CUT),
    ("input_embeds", (), "send text or token ids"),
    ("prompt_embeds", (), "send text or token ids"),
    ("image_data", (), "this server reads text"),
    ("safe_prompt", (), "write a system message"),
    # what the model is
    *((name, (), _ADAPTER) for name in ("lora_path", "lora_request", "adapter_id", "adapters")),
    ("custom_logit_processor", (), "nothing from a request is run"),
)
FOREIGN: Mapping[str, Foreign] = {name: Foreign(ok, instead) for name, ok, instead in _TABLE}
"""Fields that vLLM, SGLang, llama-server, Ollama, OpenRouter or TGI accept and we do not."""

_NOTHING: tuple[Any, ...] = (None, "", [], {})

HARMLESS = frozenset(
    (
        # llama-server's, of speculation: with any value of them the answer is the same
        *(f"speculative.{name}" for name in ("n_max", "n_min", "p_min", "p_split", "type")),
        *(
            "models",
            "messages_id",
            "prompt_id",
            "prompts",
            "stream_id",
            "store",
            "users",
            "user_id",
        ),
        *("reasoning_content", "response_id", "input_id", "tool", "options", "plugins", "provider"),
    )
)
"""Fields that change no output: passed over, though their names may resemble ours."""


def refuse_foreign(extra: Mapping[str, Any], *, choices: int | None = None) -> None:
    """Raise InvalidRequestError for a field in FOREIGN that does not have a neutral value."""
    for name, value in extra.items():
        field = FOREIGN.get(name)
        if field is None or any(value is each or value == each for each in _NOTHING):
            continue
        if name == "best_of" and value == choices:
            continue
        if value is False and True not in field.neutral:
            continue
        if any(
            value == each and isinstance(value, bool) == isinstance(each, bool)
            for each in field.neutral
        ):
            continue
        raise InvalidRequestError(
            f'"{name}" is not supported: {field.instead}.', hint=_hint(field.neutral)
        )


def refuse_misspelt(extra: Iterable[str], known: Iterable[str]) -> None:
    """Raise InvalidRequestError for an unknown field whose name is nearly that of a known one.

    Other unknown fields are ignored: clients send many that mean nothing here.
    """
    names = [name for name in known if len(name) > 3]
    for name in extra:
        if len(name) > 40 or name in FOREIGN or name in HARMLESS:
            continue
        near = difflib.get_close_matches(name.casefold(), names, 1, 0.85)
        if near:
            raise InvalidRequestError(
                f'"{name}" is not a field of this request; "{near[0]}" is.',
                hint="correct the name, or leave the field out",
            )


def passed_over(extra: Iterable[str]) -> list[str]:
    """Return the names of unknown fields as a header may have them: the first few.

    An empty name is two quotes: a header's value does not end with a space.
    """
    names = [name for name in extra if name not in FOREIGN and name not in HARMLESS][:MAX_NAMED]
    return [re.sub(r"[^\w.-]", "?", name[:MAX_SHOWN], flags=re.ASCII) or '""' for name in names]


def _hint(neutral: tuple[Any, ...]) -> str:
    return f"leave it out, or at {neutral[0]!r}" if neutral else "leave it out"
