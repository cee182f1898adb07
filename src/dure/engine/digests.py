"""The names of a request's blocks: digests of their tokens and of all that comes before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from dure.batch import BLOCK_SIZE
from dure.engine.block_pool import block_digest, blocks_for

if TYPE_CHECKING:
    from dure.engine.request import Request


class Named(Protocol):
    """Tokens whose blocks have names: a request's, or those of one that is to be placed."""

    root: bytes
    tokens: list[int]
    digests: list[bytes]


def digests_of(request: Named) -> list[bytes]:
    """Return the digest of every full block of the request's tokens; each is computed once."""
    digests = request.digests
    for index in range(len(digests), len(request.tokens) // BLOCK_SIZE):
        tokens = request.tokens[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE]
        digests.append(block_digest(digests[-1] if digests else request.root, tokens))
    return digests


def parent_of(request: Named, count: int) -> bytes:
    """Return the digest of the request's first `count` full blocks."""
    return digests_of(request)[count - 1] if count else request.root


def prefix_of(request: Request, position: int) -> tuple[bytes, list[int]]:
    """Return what names the request's tokens before `position`: a digest, and tokens after."""
    count = position // BLOCK_SIZE
    return parent_of(request, count), request.tokens[count * BLOCK_SIZE : position]


def matchable(request: Request) -> list[bytes]:
    """Return the digests of full blocks before the last token, which is always computed."""
    return digests_of(request)[: (len(request.tokens) - 1) // BLOCK_SIZE]


def uncomputed(request: Request) -> list[bytes]:
    """Return what names each block of its prompt that the request is still computing."""
    if request.num_uncomputed_tokens == 1:  # decoding, or a token that each must compute itself
        return []
    first = request.num_computed_tokens // BLOCK_SIZE
    return [block_key(request, i) for i in range(first, blocks_for(len(request.tokens)))]


def block_key(request: Request, index: int) -> bytes:
    """Return a digest of one block of the request's tokens, the part-filled last one too."""
    digests = digests_of(request)
    if index < len(digests):
        return digests[index]
    parent = digests[-1] if digests else request.root
    return block_digest(parent, request.tokens[index * BLOCK_SIZE :])
