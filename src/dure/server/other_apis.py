"""The routes of the APIs beside OpenAI's chat: responses, Anthropic's messages, Ollama's."""

from __future__ import annotations

from dure.server import anthropic, ollama, ollama_models, responses
from dure.server.anthropic_shapes import CountBody, MessagesBody
from dure.server.ollama_shapes import ChatBody, GenerateBody, ShowBody
from dure.server.responses_shapes import InputBody, ResponsesBody
from dure.server.route import Route

ROUTES = (
    Route("POST", "/messages", anthropic.messages, MessagesBody),
    Route("POST", "/messages/count_tokens", anthropic.count_tokens, CountBody),
    Route("POST", "/responses", responses.create, ResponsesBody),
    Route("POST", "/responses/input_tokens", responses.input_tokens, InputBody),
    Route("GET", "/responses/{response_id}", responses.get),
    Route("DELETE", "/responses/{response_id}", responses.delete),
    Route("GET", "/responses/{response_id}/input_items", responses.input_items),
    Route("POST", "/responses/{response_id}/cancel", responses.cancel),
    Route("GET", "/", ollama_models.root, versioned=False),
    Route("HEAD", "/", ollama_models.root, versioned=False),
    Route("GET", "/api/version", ollama_models.version, versioned=False),
    Route("GET", "/api/tags", ollama_models.tags, versioned=False),
    Route("GET", "/api/ps", ollama_models.ps, versioned=False),
    Route("POST", "/api/show", ollama_models.show, ShowBody, versioned=False),
    Route("POST", "/api/chat", ollama.chat, ChatBody, versioned=False),
    Route("POST", "/api/generate", ollama.generate, GenerateBody, versioned=False),
)
