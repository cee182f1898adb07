"""The table of routes: path, handler, and the schema of the body."""

from __future__ import annotations

from dure.server import model_routes
from dure.server.anthropic import messages
from dure.server.anthropic.schemas import CountBody, MessagesBody
from dure.server.ollama import changes, embed
from dure.server.ollama import chat as ollama_chat
from dure.server.ollama import models as ollama_models
from dure.server.ollama.schemas import (
    ChatBody,
    CopyBody,
    CreateBody,
    EmbedBody,
    EmbeddingsBody,
    GenerateBody,
    PullBody,
    ShowBody,
)
from dure.server.openai import chat as openai_chat
from dure.server.openai import completions, embeddings, responses, schemas
from dure.server.openai.embedding_schemas import EmbeddingBody, RerankBody
from dure.server.openai.responses_schemas import InputBody, ResponsesBody
from dure.server.page.routes import root
from dure.server.route import Route

ROUTES = (
    Route("POST", "/chat/completions", openai_chat.chat, schemas.ChatBody),
    Route("POST", "/chat/completions/control", openai_chat.control, schemas.ControlBody),
    Route("POST", "/completions", completions.complete, schemas.CompletionBody),
    Route("POST", "/embeddings", embeddings.embeddings, EmbeddingBody),
    Route("POST", "/rerank", embeddings.rerank, RerankBody),
    Route("POST", "/v2/rerank", embeddings.rerank, RerankBody, versioned=False),  # Cohere's path
    Route("GET", "/models", model_routes.models),
    Route("GET", "/models/{name:path}", model_routes.model),
    Route("POST", "/tokenize", model_routes.tokenize, schemas.TokenizeBody),
    Route("POST", "/detokenize", model_routes.detokenize, schemas.DetokenizeBody),
    Route("GET", "/tokenizer_info", model_routes.tokenizer_info),
    Route("POST", "/apply-template", model_routes.apply_template, schemas.ChatBody),
    Route("GET", "/health", model_routes.health),
    Route("GET", "/metrics", model_routes.metrics),
    Route("GET", "/props", model_routes.props),
    Route("POST", "/messages", messages.messages, MessagesBody),
    Route("POST", "/messages/count_tokens", messages.count_tokens, CountBody),
    Route("POST", "/responses", responses.create, ResponsesBody),
    Route("POST", "/responses/input_tokens", responses.input_tokens, InputBody),
    Route("GET", "/responses/{response_id}", responses.get),
    Route("DELETE", "/responses/{response_id}", responses.delete),
    Route("GET", "/responses/{response_id}/input_items", responses.input_items),
    Route("POST", "/responses/{response_id}/cancel", responses.cancel),
    Route("GET", "/v1/status", model_routes.status, versioned=False),
    Route("GET", "/", root, versioned=False),
    Route("HEAD", "/", root, versioned=False),
    Route("GET", "/api/version", ollama_models.version, versioned=False),
    Route("GET", "/api/tags", ollama_models.tags, versioned=False),
    Route("GET", "/api/ps", ollama_models.ps, versioned=False),
    Route("POST", "/api/show", ollama_models.show, ShowBody, versioned=False),
    Route("POST", "/api/chat", ollama_chat.chat, ChatBody, versioned=False),
    Route("POST", "/api/generate", ollama_chat.generate, GenerateBody, versioned=False),
    Route("POST", "/api/create", changes.create, CreateBody, versioned=False),
    Route("POST", "/api/copy", changes.copy, CopyBody, versioned=False),
    Route("DELETE", "/api/delete", changes.delete, ShowBody, versioned=False),
    Route("POST", "/api/pull", changes.pull, PullBody, versioned=False),
    Route("POST", "/api/embed", embed.embed, EmbedBody, versioned=False),
    Route("POST", "/api/embeddings", embed.embeddings, EmbeddingsBody, versioned=False),
)
