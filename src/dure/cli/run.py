"""dure run: answer one prompt on stdout, or chat in the terminal."""

# ruff: noqa: PLC0415 - the kernels are loaded when the verb runs, not for its --help

from __future__ import annotations

import json as json_module
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dure.cli import before_download, console
from dure.cli.answer_view import AnswerView
from dure.cli.ctrl_c import ends_soon

if TYPE_CHECKING:
    from dure.chat.output import Completion
    from dure.chat.request import Format
    from dure.cli.served_model import ServedModel
    from dure.engine.params import SamplingParams
    from dure.llm import LLM
    from dure.metering.prices import Prices


# For a model whose makers recommend nothing. Sampling from the whole distribution, as the library
# does then, makes small models ramble.
FALLBACK_SAMPLING: dict[str, float] = {"temperature": 0.7, "top_p": 0.9}


def command(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="A short name, a hub id, a file or a folder; default: the catalogue's default. "
            "A single argument that has a space and is no file is the PROMPT.",
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT",
            show_default=False,
            help="The prompt. Piped input is appended to it, or is the prompt. Without either, "
            "on a terminal, a chat starts.",
        ),
    ] = None,
    *,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Generate at most this many tokens.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Sampling temperature; 0 is greedy.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample from the k most likely tokens.")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Sample from the most likely tokens up to this probability mass."),
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Drop tokens below this share of the top probability.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed for sampling: the same seed gives the same answer.")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Stop before this text; may be repeated.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    think: Annotated[
        str | None,
        typer.Option(metavar="on|off|N", help="Thinking: on, off, or at most N tokens."),
    ] = None,
    hide_thinking: Annotated[
        bool,
        typer.Option(
            "--hide-thinking", "--hidethinking", help="Show one line while the model thinks."
        ),
    ] = False,
    json_schema: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|JSON",
            help="Answer in JSON that follows this schema: a file, or the JSON itself.",
        ),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Complete the text without a chat template.")
    ] = False,
    context: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Context length in tokens, prompt and answer [default: what fits, up to 32768].",
        ),
    ] = None,
    cache: Annotated[
        console.Cache,
        typer.Option(help="KV cache type: f16, or q8 for about half the memory."),
    ] = console.Cache.f16,
    memory: console.Memory = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads [default: the physical cores].")
    ] = None,
    models_dir: console.ModelsDir = None,
    quantize: console.Quantize = None,
    speculate: console.Speculate = None,
    draft: console.Draft = None,
    exact: console.Exact = False,
    watts: console.WattsOption = None,
    price: console.Price = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show tokens, speeds, joules and money on stderr.")
    ] = False,
    yes: before_download.Yes = False,
    local: Annotated[
        bool,
        typer.Option("--local", help="Load the model here, even if a server has it in memory."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Answer one prompt, or chat.

    Sampling options default to the model's own recommendation, else to temperature 0.7 and
    top-p 0.9. A server of dure's that has the model in memory ($DURE_URL, else port 8000 of this
    machine) is asked, unless --local or an option of loading is given.
    """
    from dure.cli.conversation import Conversation, completes_text
    from dure.cli.served_model import served_model
    from dure.engine.params import SamplingParams
    from dure.metering.meter import Meter

    thinking, guessing = parse_think(think), console.speculation(speculate, draft)
    budget, prices = console.memory_budget(memory), console.prices(price)
    meter = Meter.of_this_machine(console.watts(watts))
    form = None if json_schema is None else read_schema(json_schema)
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        stop=stop or (),
    )
    model, prompt = split_arguments(model, prompt)
    lone = model if prompt is None else None  # a single word: a model, or what was to be asked?
    prepared = with_piped_input(prompt)
    if prepared is None:
        with asking_is_meant(lone):
            check_can_chat("--json" if json else "--json-schema" if form else None)
    options: dict[str, Any] = {
        "context": context,
        "threads": threads,
        "exact": exact,
        "quantize": quantize,
        "cache_dtype": cache.value,
        "speculate": guessing,
        "memory": budget,
        "meter": meter,
    }
    loading = (context, memory, threads, models_dir, quantize, speculate, draft, watts)
    is_plain = not (exact or raw or local) and cache is console.Cache.f16
    may_ask = is_plain and all(each is None for each in loading)
    began = time.perf_counter()
    llm: LLM | ServedModel | None = (
        served_model(model, fallback=FALLBACK_SAMPLING, tell=console.note) if may_ask else None
    )
    if llm is None:
        before_download.tell_plan(model, context=context, budget=budget, quantize=quantize, yes=yes)
        began = time.perf_counter()
        with asking_is_meant(lone):
            llm = load(model, **options)
    load_s = time.perf_counter() - began
    tell_model(llm, load_s, verbose=verbose)
    if prepared is None:
        from dure.cli.chat import Chat

        chat = Chat(
            llm,
            params,
            system=system,
            think=thinking,
            raw=raw,
            verbose=verbose,
            fold=hide_thinking,
            prices=prices,
            source=model,
            load=lambda name: (
                (served_model(name, fallback=FALLBACK_SAMPLING) if may_ask else None)
                or load(name, **options)
            ),
        )
        del llm  # the chat may let go of it for another
        chat.run()
        return
    asked: str | list[dict[str, str]] = prepared
    if not completes_text(llm, raw=raw, system=system, think=thinking):
        asked = Conversation(system).messages_with(prepared)
    elif verbose and not raw:
        console.note(f"{llm.name} has no chat template: it completes the text")
    view = None
    if not json:
        view = AnswerView(fold=hide_thinking, plain=isinstance(asked, str))
    completion = answer(llm, asked, params, think=thinking, form=form, view=view)
    if json:
        console.print_json(as_json(llm, completion, load_s, prices))
    elif completion.finish_reason == "length" and not (max_tokens or _default_length(llm)):
        console.note(f"(the context of {llm.context:,} tokens is full)")
    if verbose:
        console.note(console.summary(completion, prices))


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


def _default_length(llm: LLM | ServedModel) -> int | None:
    """Return the model's own default of max_tokens, if its store or preset has one."""
    return llm.sampling_defaults.get("max_tokens")


def tell_model(llm: LLM | ServedModel, load_s: float, *, verbose: bool) -> None:
    """Say on stderr where the model is, and what of it does not go without saying."""
    from dure.cli.served_model import ServedModel

    if isinstance(llm, ServedModel):
        console.note(f"(the server at {llm.host} has {llm.name} in memory; --local loads it here)")
        return
    console.tell_notes(llm.notes)
    console.tell_memory(llm.name, llm.memory)
    if verbose:
        console.note(f"{describe(llm)}, loaded in {load_s:.2f} s")
        console.tell_energy(llm.meter.energy)


def load(model: str | None, **options: Any) -> LLM:
    """Load the model, showing download and loading on stderr if that is a terminal."""
    from dure.llm import LLM

    with console.loading() as progress:
        return LLM(
            model,
            fallback_sampling=FALLBACK_SAMPLING,
            require_tokenizer=True,
            **progress,
            **options,
        )


def describe(llm: LLM) -> str:
    """Format what was loaded: name, context and threads."""
    return f"{llm.name}: context of {llm.context:,} tokens, {llm.threads} threads"


def parse_think(text: str | None) -> bool | int | None:
    """Parse --think: True for "on", False for "off", a number of tokens, None if not given."""
    if text is None:
        return None
    if text in ("on", "off"):
        return text == "on"
    if text.isdecimal() and len(text) < 10:
        return int(text)
    raise typer.BadParameter(f"{text!r} is not on, off or a number of tokens", param_hint="--think")


def read_schema(given: str) -> Format:
    """Read a JSON schema, from a file or given as JSON, and check that it can be enforced.

    What of it is left to the model is said on stderr. Raises InvalidRequestError.
    """
    from dure.chat.request import Format
    from dure.chat.structured_output import check_format
    from dure.errors import InvalidRequestError

    is_json = given.lstrip()[:1] in ("{", "[", '"')
    what = "--json-schema" if is_json else given
    try:
        data = given.encode() if is_json else Path(given).read_bytes()
    except OSError as error:
        raise InvalidRequestError(
            f"{given} cannot be read: {error.strerror}.",
            hint="give a file, or the schema itself, which begins with {",
        ) from None
    except ValueError:
        raise InvalidRequestError("The path of --json-schema holds a null character.") from None
    try:
        form = Format("json_schema", json_module.loads(data))
    except (ValueError, RecursionError) as error:
        place = f": {error}" if isinstance(error, json_module.JSONDecodeError) else ""
        raise InvalidRequestError(
            f"{what} holds no JSON{place}.", hint="quote it for the shell: '{\"type\": …}'"
        ) from None
    for left in check_format(form):
        console.note(f"({left} is not enforced)")
    return form


@contextmanager
def asking_is_meant(lone: str | None) -> Iterator[None]:
    """Turn an error inside the block into how to ask, where a `lone` word is no model."""
    from dure import hub
    from dure.errors import InvalidRequestError, ModelNotFoundError

    try:
        yield
    except (InvalidRequestError, ModelNotFoundError) as error:
        if lone is None or set(lone) & set(":/\\") or hub.is_known(lone):
            raise
        raise ModelNotFoundError(
            f"{lone!r} is not a model.",
            hint=f'to ask the default model: dure run {hub.load_catalogue().default} "{lone}"'
            + (f"; {error.hint}" if isinstance(error, ModelNotFoundError) else ""),
        ) from None


def split_arguments(model: str | None, prompt: str | None) -> tuple[str | None, str | None]:
    """Return (model or None for the default, prompt); a lone argument with a space is a prompt."""
    if model is None or prompt is not None or not any(c.isspace() for c in model.strip()):
        return model, prompt
    try:
        is_path = Path(model).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        is_path = False
    return (model, None) if is_path else (None, model)


def with_piped_input(prompt: str | None) -> str | None:
    """Append what was piped in to `prompt`, after a blank line; None if there is neither."""
    from dure.errors import InvalidRequestError

    if sys.stdin is None or sys.stdin.isatty():
        return prompt
    # The parent may have left a pipe that nobody closes: say what we wait for.
    waiting = threading.Timer(3.0, console.note, ["waiting for standard input to end"])
    waiting.daemon = True
    waiting.start()
    try:
        piped = sys.stdin.buffer.read().decode("utf-8").strip("\n")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            f"Standard input is not UTF-8 text: byte {error.start} is not.",
            hint="convert it with iconv first",
        ) from None
    finally:
        waiting.cancel()
    return "\n\n".join(part for part in (prompt, piped) if part) or None


def check_can_chat(option: str | None) -> None:
    """Check that a chat can start: on a terminal, without an `option` that needs a prompt.

    Raises InvalidRequestError.
    """
    from dure.errors import InvalidRequestError

    if option is not None:
        raise InvalidRequestError(
            f"{option} needs a PROMPT.",
            hint=f'dure run MODEL "…" {option}',
        )
    if sys.stdin is None or not sys.stdin.isatty():
        raise InvalidRequestError(
            "No PROMPT was given, and standard input is empty.",
            hint='dure run MODEL "…", or pipe the prompt in',
        )


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
