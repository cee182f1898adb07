"""ModelRunner: owns a model and its cache, and computes batches. The engine never sees either."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dure.batch import CacheDtype, StateSpec
from dure.engine.kv_storage import KVStorage
from dure.errors import InvalidRequestError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dure.batch import Batch
    from dure.models import Model


class ModelRunner:
    """One model with its cache on this machine.

    An engine needs of a runner what is public here: so one may be a pipeline of others elsewhere.
    """

    def __init__(
        self,
        model: Model,
        *,
        num_blocks: int,
        num_states: int = 0,
        cache_dtype: CacheDtype = "f16",
    ) -> None:
        """Allocate the cache.

        It has `num_blocks` blocks of 32 tokens in every attention layer, and `num_states` slots in
        every recurrent one, of which each running sequence needs one. Raises InvalidRequestError if
        a recurrent model gets none.
        """
        specs = model.kv_cache_specs
        recurrent = any(isinstance(spec, StateSpec) for spec in specs)
        if recurrent and num_states < 1:
            raise InvalidRequestError(
                "num_states must be at least 1 for a model with recurrent layers, "
                f"but is {num_states}."
            )
        self.model = model
        self.vocab_size = model.vocab_size
        self.context_length = model.context_length
        self.num_blocks = num_blocks
        self.num_states = num_states if recurrent else 0
        self.storage = KVStorage(
            specs, num_blocks=num_blocks, num_states=num_states, dtype=cache_dtype
        )

    @property
    def cache_bytes(self) -> int:
        """Bytes of the whole cache."""
        return self.storage.size_bytes

    def execute(self, batch: Batch) -> NDArray[np.float32]:
        """Do what `batch.cache_ops` says, run the model, and keep its keys and values.

        Returns logits float32 (len(batch.logit_rows), vocab_size).
        """
        if batch.cache_ops:
            self.storage.apply(batch.cache_ops)
        return self.model.forward(batch, self.storage.arrays)
