"""Routes besides generation: models, tokenize, chat template, health, metrics and properties."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from dure import __version__
from dure.chat.request import ChatRequest
from dure.server.errors import invalid
from dure.server.http.sse import json_response
from dure.server.openai import chat
from dure.server.openai.schemas import ChatBody, DetokenizeBody, TokenizeBody
from dure.server.serving.status import status_of
from dure.server.wire.body import converted, read_as
from dure.server.wire.logprobs import token_text
from dure.server.wire.prefill import is_prefill
from dure.server.wire.tenant import tenant
from dure.server.wire.validation import refuse
from dure.text.length import longest_text

if TYPE_CHECKING:
    from starlette.requests import Request

    from dure.llm import LLM
    from dure.server.serving.service import Service


async def models(service: Service, request: Request) -> Response:
    """List the models that are served: ids, aliases, lineage, context, quantisation, prices."""
    listed = await service.models(key=tenant(request))
    return json_response({"object": "list", "data": listed})


async def model(service: Service, request: Request) -> Response:
    """Describe one model that is served."""
    return json_response(await service.model(request.path_params["name"], key=tenant(request)))


async def tokenize(service: Service, request: Request) -> Response:
    """Tokenize a text, or the prompt of a chat."""
    body = await read_as(request, TokenizeBody)
    refuse(body, {})
    text = body.content if body.prompt is None else body.prompt
    if (text is None) == (body.messages is None):
        raise invalid("Give either prompt (a text) or messages (a chat).", "prompt")
    if body.messages is not None and not body.messages:
        raise invalid("messages is empty: there is nothing to tokenize.", "messages")
    add_special = next(
        (each for each in (body.add_special_tokens, body.add_special) if each is not None), True
    )

    def tokens(llm: LLM) -> dict[str, Any]:
        if body.messages is not None:
            messages = [message.model_dump(exclude_none=True) for message in body.messages]
            goes_on = is_prefill(body.messages[-1])
            asked = ChatRequest(messages, body.tools or (), continue_final=goes_on)
            ids = list(llm.prepare(asked).token_ids)
        else:
            ids = _tokenized(
                llm, text or "", add_special=add_special, special=body.parse_special is not False
            )
        found: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": llm.context}
        if body.with_pieces or body.return_token_strs:
            pieces = [token_text(llm.tokenizer, each) for each in ids]
            if body.return_token_strs:
                found["token_strs"] = pieces
            else:
                pairs = zip(ids, pieces, strict=True)
                found["tokens"] = [{"id": each, "piece": piece} for each, piece in pairs]
        return found

    return await service.with_model(body.model, lambda llm: json_response(tokens(llm)))


def _tokenized(llm: LLM, text: str, *, add_special: bool, special: bool) -> list[int]:
    """Return the tokens of a text; a 400 if it is too long to list them."""
    most = longest_text(llm.context)
    if len(text) > most:
        raise invalid(
            f"The text has {len(text):,} characters; at most {most:,} are tokenised at once. "
            "Send it in parts.",
            "prompt",
        )
    return llm.tokenizer.encode(text, add_special=add_special, parse_special=special)


async def detokenize(service: Service, request: Request) -> Response:
    """Decode token ids to text."""
    body = await read_as(request, DetokenizeBody)
    refuse(body, {})

    def decoded(llm: LLM) -> Response:
        text = llm.tokenizer.decode(body.tokens)
        return json_response({"prompt": text, "content": text})

    return await service.with_model(body.model, decoded)


async def tokenizer_info(service: Service, request: Request) -> Response:
    """Describe the tokenizer to a client that uses it remotely, in vLLM's form."""

    def told(llm: LLM) -> dict[str, Any]:
        return {
            "tokenizer_class": "dure",
            "bos_token": llm.tokenizer.bos_token or None,
            "eos_token": llm.tokenizer.eos_token or None,
            "pad_token": None,
            "chat_template": llm.template_source,
        }

    return json_response(await service.with_model(request.query_params.get("model"), told))


async def apply_template(service: Service, request: Request) -> Response:
    """Render a chat to a prompt by the model's chat template."""
    body = await read_as(request, ChatBody)
    refuse(body, {})
    asked = await converted(request, body, lambda: chat.chat_request(body))

    def rendered(llm: LLM) -> Response:
        return json_response({"prompt": llm.request_builder.render(asked)})

    return await service.with_model(body.model, rendered)


async def health(service: Service, request: Request) -> Response:  # noqa: ARG001 - a route takes one
    """Report whether the server can answer: 200, or 503 while it loads a model or shuts down."""
    status = service.health()
    return json_response({"status": status}, status=200 if status == "ok" else 503)


async def metrics(service: Service, request: Request) -> Response:
    """Return the server's metrics in Prometheus' text format: all keys' to an admin's key, to
    others what is theirs, and what has no key.
    """
    accounts, asking = service.accounting, tenant(request)
    key = None if accounts.is_admin(asking) else accounts.name(asking)
    text = service.metrics.text(service.registry, key=key)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def status(service: Service, request: Request) -> Response:
    """Describe what runs: models, one that is loading and how far, the queue, and the streams."""
    return json_response(status_of(service, tenant(request)))


async def props(service: Service, request: Request) -> Response:
    """Describe a model's settings in the form of llama-server."""
    asked = request.query_params.get("model")

    def settings(llm: LLM) -> dict[str, Any]:
        return {
            "model_alias": llm.name,
            "total_slots": service.parallel,
            "default_generation_settings": {
                "n_ctx": llm.context,
                "params": dict(llm.sampling_defaults),
            },
            "chat_template": llm.template_source or "",
            "bos_token": llm.tokenizer.bos_token,
            "eos_token": llm.tokenizer.eos_token,
            "modalities": {"vision": False, "audio": False},
            "build_info": f"dure {__version__}",
        }

    return json_response(await service.with_model(asked, settings))
