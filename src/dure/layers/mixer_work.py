"""What a token mixer computes for a token: sizes that a plan multiplies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MixerWork:
    """What one layer does beside its matrix products.

    Attention ("gqa", "latent") reads, for each head, a key and a value of every token that it sees;
    a recurrent layer ("recurrent", "conv") reads and writes its state. A latent layer's key is its
    one entry a token, of which the value is the first `value_dim` numbers.
    """

    kind: Literal["gqa", "latent", "recurrent", "conv"]
    heads: int
    key_dim: int  # numbers of a key, a head; of a latent layer latent + rotated
    value_dim: int
    kv_heads: int  # heads that have keys and values of their own; 1 of a latent layer
    window: int | None = None  # tokens that one sees, itself included; None: all
    chosen: int | None = None  # tokens that one sees at most, as an indexer chose them; None: all
    indexer_heads: int = 0  # of the indexer of this layer; 0: it has none
    indexer_dim: int = 0  # numbers of an indexer's key, one a token
