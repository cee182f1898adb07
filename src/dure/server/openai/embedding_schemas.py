"""Schemas of the bodies that ask for embeddings and ranks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from dure.engine.params import MAX_ID
from dure.pooling.request import MAX_TEXTS
from dure.server import limits
from dure.server.openai.schemas import TokenIds
from dure.server.wire.validation import Body, Name


def _at_most_texts(value: Any) -> Any:
    """Refuse too many texts by their number, before a union says that a list is no text."""
    many = isinstance(value, list) and len(value) > MAX_TEXTS
    if many and not isinstance(value[0], int):
        sizes = {"actual_length": len(value), "max_length": MAX_TEXTS}
        raise PydanticCustomError("too_long", "too long", sizes)
    return value


Dimensions = Annotated[int, Field(ge=1, le=MAX_ID)]


class PoolingFields(Body):
    """What embeddings and ranks have in common."""

    model: Name | None = None
    user: str | None = None
    priority: int | None = Field(None, ge=0, le=limits.MAX_PRIORITY)
    truncate: bool | None = None  # TEI's: cut a text that is too long
    truncate_prompt_tokens: int | None = Field(None, ge=-1, le=MAX_ID)  # vLLM's: -1 at the context


class EmbeddingBody(PoolingFields):
    """POST /v1/embeddings"""

    input: Annotated[
        str
        | TokenIds
        | Annotated[list[str], Field(fail_fast=True)]
        | Annotated[list[TokenIds], Field(fail_fast=True)],
        BeforeValidator(_at_most_texts),
    ]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Dimensions | None = None
    normalize: bool | None = None  # None: as the checkpoint says
    prompt: str | None = None  # written before each text
    prompt_name: Name | None = None  # of one that the checkpoint brings
    input_type: Name | None = None  # Cohere's and Voyage's: query or document


class RerankBody(PoolingFields):
    """POST /v1/rerank"""

    query: str
    documents: Annotated[
        list[str | dict[str, Any]], Field(fail_fast=True, min_length=1, max_length=MAX_TEXTS)
    ]
    top_n: int | None = Field(None, ge=1)
    return_documents: bool | None = None
    max_tokens_per_doc: int | None = Field(None, ge=1, le=MAX_ID)  # Cohere's: cut behind them
    instruction: str | None = None  # what is looked for; None: the makers' own
