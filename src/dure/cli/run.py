"""dure run: answer one prompt on stdout, or chat in the terminal."""

# ruff: noqa: PLC0415 - the kernels are loaded when the verb runs, not for its --help

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dure.cli import before_download, console
from dure.cli import run_options as options
from dure.cli.answer_view import AnswerView
from dure.cli.run_answer import answer, as_json, tell_if_full
from dure.cli.run_prompt import (
    asking_is_meant,
    check_can_chat,
    parse_think,
    read_schema,
    split_arguments,
    with_piped_input,
)

if TYPE_CHECKING:
    from dure.cli.served_model import ServedModel
    from dure.llm import LLM


# For a model whose makers recommend nothing. Sampling from the whole distribution, as the library
# does then, makes small models ramble.
FALLBACK_SAMPLING: dict[str, float] = {"temperature": 0.7, "top_p": 0.9}


def command(
    model: options.Model = None,
    prompt: options.Prompt = None,
    *,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    system: options.System = None,
    think: options.Think = None,
    hide_thinking: options.HideThinking = False,
    json_schema: options.JsonSchema = None,
    raw: options.Raw = False,
    context: options.Context = None,
    cache: console.CacheType = console.Cache.f16,
    memory: console.Memory = None,
    threads: options.Threads = None,
    models_dir: console.ModelsDir = None,
    quantize: console.Quantize = None,
    speculate: console.Speculate = None,
    draft: console.Draft = None,
    exact: console.Exact = False,
    watts: console.WattsOption = None,
    price: console.Price = None,
    verbose: options.Verbose = False,
    yes: before_download.Yes = False,
    local: options.Local = False,
    json: options.Json = False,
) -> None:
    """Answer one prompt, or chat.

    Sampling options default to the model's own recommendation, else to temperature 0.7 and
    top-p 0.9. A server of dure's that has the model in memory ($DURE_URL, else port 8000 of this
    machine) is asked, unless --local or an option of loading is given.
    """
    from dure.cli.conversation import Conversation, completes_text
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
    loading = (context, memory, threads, models_dir, quantize, speculate, draft, watts)
    is_plain = not (exact or raw or local) and cache is console.Cache.f16
    source = ModelSource(
        {
            "context": context,
            "threads": threads,
            "exact": exact,
            "quantize": quantize,
            "cache_dtype": cache.value,
            "speculate": guessing,
            "memory": budget,
            "meter": meter,
        },
        may_ask=is_plain and all(each is None for each in loading),
    )
    llm, load_s = source.first(model, lone=lone, yes=yes)
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
            load=source.another,
        )
        del llm  # the chat may let go of it for another
        chat.run()
        return
    asked: str | list[dict[str, str]] = prepared
    if not completes_text(llm, raw=raw, system=system, think=thinking):
        asked = Conversation(system).messages_with(prepared)
    elif verbose and not raw:
        console.note(f"{llm.name} has no chat template: it completes the text")
    view = None if json else AnswerView(fold=hide_thinking, plain=isinstance(asked, str))
    completion = answer(llm, asked, params, think=thinking, form=form, view=view)
    if json:
        console.print_json(as_json(llm, completion, load_s, prices))
    else:
        tell_if_full(llm, completion, max_tokens)
    if verbose:
        console.note(console.summary(completion, prices))


@dataclass(frozen=True)
class ModelSource:
    """Where models come from: a server that has them in memory, or they are loaded here."""

    options: Mapping[str, Any]  # arguments of LLM
    may_ask: bool  # whether a server may be asked

    def first(
        self, model: str | None, *, lone: str | None, yes: bool
    ) -> tuple[LLM | ServedModel, float]:
        """Return the model, None being the catalogue's default, and the seconds that it took.

        What a download would bring is said before it, and asked without `yes`. lone: as of
        `asking_is_meant`.
        """
        began = time.perf_counter()
        llm: LLM | ServedModel | None = self._served(model, tell=console.note)
        if llm is None:
            before_download.tell_plan(
                model,
                context=self.options["context"],
                budget=self.options["memory"],
                quantize=self.options["quantize"],
                yes=yes,
            )
            began = time.perf_counter()
            with asking_is_meant(lone):
                llm = load(model, **self.options)
        return llm, time.perf_counter() - began

    def another(self, model: str) -> LLM | ServedModel:
        """Return another model, for the chat."""
        return self._served(model, tell=lambda _: None) or load(model, **self.options)

    def _served(self, model: str | None, tell: Callable[[str], None]) -> ServedModel | None:
        from dure.cli.served_model import served_model

        if not self.may_ask:
            return None
        return served_model(model, fallback=FALLBACK_SAMPLING, tell=tell)


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


def tell_model(llm: LLM | ServedModel, load_s: float, *, verbose: bool) -> None:
    """Say on stderr where the model is, and what of it does not go without saying."""
    from dure.cli.served_model import ServedModel

    if isinstance(llm, ServedModel):
        console.note(f"(the server at {llm.host} has {llm.name} in memory; --local loads it here)")
        return
    console.tell_notes(llm.notes)
    console.tell_memory(llm.name, llm.memory)
    if verbose:
        console.note(
            f"{llm.name}: context of {llm.context:,} tokens, {llm.threads} threads, "
            f"loaded in {load_s:.2f} s"
        )
        console.tell_energy(llm.meter.energy)
