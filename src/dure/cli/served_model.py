"""A model that a running server has in memory, as `dure run` and the chat use one."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from dure.chat.dialects import Event
from dure.chat.output import Chunk, Completion
from dure.chat.usage import Usage
from dure.engine.params import SamplingParams
from dure.errors import DureError
from dure.hub import load_catalogue
from dure.hub.http import host_of
from dure.hub.server_client import ServerClient, ServerRefusedError, ServerStream
from dure.metering.cost import Cost

if TYPE_CHECKING:
    from dure.chat.request import Format

_REFUSALS = (0, 401, 403)  # 0: its certificate is not trusted
PROBE_S = 1.0
"""How long a server is asked whether it has the model; one of this machine answers at once."""

_FIELDS = (
    *("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"),
    *("presence_penalty", "frequency_penalty", "seed"),
)
_MEASURES = re.compile(r"rapl|hwmon|battery|watts|tdp")


class Interrupt(threading.Event):
    """Is set while the answer in progress is not wanted: its connection is closed then."""

    stream: ServerStream | None = None

    def set(self) -> None:
        """Leave the answer in progress."""
        super().set()
        if self.stream is not None:
            self.stream.close()


@dataclass(frozen=True)
class ServedDriver:
    """Where a chat says that an answer is not wanted any more, as with an LLM's driver."""

    interrupted: Interrupt


class ServedModel:
    """One model of a server, with the properties of an LLM that a chat shows."""

    memory = None  # nothing is loaded here
    notes: tuple[str, ...] = ()

    def __init__(
        self, client: ServerClient, name: str, props: Mapping[str, Any], fallback: Mapping[str, Any]
    ) -> None:
        """props: of the server's /props. fallback: sampling for a model that recommends none."""
        settings = props.get("default_generation_settings")
        settings = settings if isinstance(settings, dict) else {}
        said = settings.get("params")
        own: dict[str, Any] = said if isinstance(said, dict) else {}
        self.name = name
        self.host = host_of(client.url)
        self.context = int(settings.get("n_ctx") or 0)
        self.template_source: str | None = str(props.get("chat_template") or "") or None
        self.sampling_defaults = {**({} if fallback.keys() & own.keys() else fallback), **own}
        self.driver = ServedDriver(Interrupt())
        self._client = client

    def facts(self) -> dict[str, object]:
        """Return what `/show info` says of it."""
        return {"server": self._client.url, "context": f"{self.context:,} tokens"}

    def check_think(self, think: bool | int | None) -> None:
        """Leave it to the server, which refuses what its model cannot do."""

    def stream(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        params: SamplingParams | None = None,
        *,
        think: bool | int | None = None,
        format: Format | None = None,  # noqa: A002 - the word that requests use
        on_prefill: Callable[[int, int], None] | None = None,
    ) -> Generator[Chunk, None, None]:
        """Stream an answer, as LLM.stream does. Raises DownloadError or InvalidRequestError."""
        body = self._body(prompt, params or SamplingParams(), think, format)
        path = "/v1/completions" if isinstance(prompt, str) else "/v1/chat/completions"
        stream = self._client.stream(path, body)
        self.driver.interrupted.stream = stream
        if self.driver.interrupted.is_set():  # while the server was being asked
            stream.close()
        return self._chunks(stream, on_prefill)

    def _chunks(
        self, stream: ServerStream, on_prefill: Callable[[int, int], None] | None
    ) -> Generator[Chunk, None, None]:
        events: list[Event] = []
        reason = ""
        timings: dict[str, Any] = {}
        usage: dict[str, Any] = {}
        try:
            for item in stream:
                progress = item.get("prompt_progress")
                if on_prefill is not None and isinstance(progress, dict):
                    on_prefill(int(progress["processed"]), int(progress["total"]))
                timings, usage = item.get("timings") or timings, item.get("usage") or usage
                for choice in item.get("choices", ()):
                    new = _events(choice)
                    events += new
                    reason = choice.get("finish_reason") or reason
                    if new:
                        yield Chunk("".join(event.text for event in new), -1, events=tuple(new))
        except DureError:
            if self.driver.interrupted.is_set():
                return
            raise
        finally:
            stream.close()
        yield Chunk("", -1, _completion(events, reason, timings, usage))

    def _body(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        params: SamplingParams,
        think: bool | int | None,
        form: Format | None,
    ) -> dict[str, Any]:
        known = params.resolve(self.sampling_defaults)
        given = {name: getattr(params, name) for name in _FIELDS}
        given |= {n: getattr(known, n) for n in self.sampling_defaults if n in given}
        body: dict[str, Any] = {
            "model": self.name,
            "stream": True,
            "return_progress": True,
            "stream_options": {"include_usage": True},
            **{name: value for name, value in given.items() if value is not None},
        }
        if isinstance(prompt, str):  # where 16 tokens are the default, as OpenAI has it
            body = {"max_tokens": -1, **body, "prompt": prompt}
        else:
            body["messages"] = list(prompt)
        body |= {"stop": list(params.stop)} if params.stop else {}
        if isinstance(think, bool):
            body["enable_thinking"] = think
        elif think is not None:
            body["thinking_budget"] = think
        if form is not None:
            schema = {"name": "answer", "schema": form.value}
            body["response_format"] = {"type": form.kind} | (
                {"json_schema": schema} if form.kind == "json_schema" else {}
            )
        return body


def served_model(
    model: str | None,
    *,
    fallback: Mapping[str, Any],
    tell: Callable[[str], None] = lambda _: None,
) -> ServedModel | None:
    """Return the model, if a server of dure's is up that has it in memory; None otherwise.

    model: as typed; None is the catalogue's default. fallback: as of ServedModel. tell: takes a
    line on a server that is there and refuses, or that $DURE_URL names and is not there. The key of
    $DURE_API_KEY is for the server that $DURE_URL names alone. Raises InvalidRequestError or
    DownloadError if $DURE_URL names no server, or one that refuses.
    """
    is_named = bool(os.environ.get("DURE_URL"))
    client = replace(ServerClient.from_environment(), timeout_s=PROBE_S)
    if not is_named:  # whoever listens there: no key was meant for them
        client = replace(client, key="")
    catalogue = load_catalogue()
    wanted = model or catalogue.default
    entry = catalogue.find(wanted)
    names = {wanted.casefold(), wanted.casefold() + ":latest"}
    names |= {entry.name.casefold()} if entry is not None else set()
    try:
        running = [each.name for each in client.running()]
        found = next((name for name in running if name.casefold() in names), None)
        if found is None:
            return None
        props = client.props(found)
    except DureError as failure:
        refuses = isinstance(failure, ServerRefusedError) and failure.status in _REFUSALS
        if is_named and refuses:
            failure.hint = f"{failure.hint}; --local loads the model here".removeprefix("; ")
            raise
        if refuses and failure.hint:
            hint = "DURE_URL and DURE_API_KEY ask it with a key"
            tell(f"({failure.message} The model is loaded here; {hint})")
        elif is_named:
            tell(f"({failure.message} The model is loaded here.)")
        return None
    # A prompt is sent to no other program that happens to listen there.
    is_dure = str(props.get("build_info", "")).startswith("dure ")
    return ServedModel(client, found, props, fallback) if is_dure else None


def _events(choice: Mapping[str, Any]) -> list[Event]:
    """Return what one event of the stream adds, of a chat or of a completion."""
    delta = choice.get("delta")
    delta = delta if isinstance(delta, dict) else {"content": choice.get("text")}
    kinds: tuple[Literal["reasoning", "content"], ...] = ("reasoning", "content")
    texts = (delta.get("reasoning_content"), delta.get("content"))
    pairs = zip(kinds, texts, strict=True)
    return [Event(kind, text) for kind, text in pairs if isinstance(text, str) and text]


def _completion(
    events: Sequence[Event], reason: str, timings: Mapping[str, Any], usage: Mapping[str, Any]
) -> Completion:
    content = "".join(event.text for event in events if event.kind == "content")
    reasoning = "".join(event.text for event in events if event.kind == "reasoning")
    joules = timings.get("joules")
    return Completion(
        text=reasoning + content,
        token_ids=(),
        logprobs=None,
        finish_reason=reason or "abort",
        usage=Usage(
            prompt_tokens=int(usage.get("prompt_tokens", 0)),
            cached_tokens=int(timings.get("cache_n", 0)),
            output_tokens=int(usage.get("completion_tokens", 0)),
            drafted_tokens=int(timings.get("draft_n", 0)),
            accepted_tokens=int(timings.get("draft_n_accepted", 0)),
            prefill_s=timings.get("prompt_ms", 0.0) / 1000,
            decode_s=timings.get("predicted_ms", 0.0) / 1000,
            cost=Cost(
                cpu_s=timings.get("processor_ms", 0.0) / 1000,
                joules=joules,
                energy=tuple(_MEASURES.findall(str(timings.get("energy", "")))),
            ),
        ),
        content=content,
        reasoning=reasoning,
    )
