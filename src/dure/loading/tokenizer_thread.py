"""A checkpoint's tokenizer, made on a thread of its own while the weights are packed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from dure import kernels

if TYPE_CHECKING:
    from dure.formats.checkpoint import Checkpoint
    from dure.loading.draft import DraftCheckpoint
    from dure.text.tokenizer import Tokenizer


class TokenizerThread:
    """Build a checkpoint's tokenizer on its own thread, while the weights are packed."""

    def __init__(
        self, checkpoint: Checkpoint | None, drafting: DraftCheckpoint | None, *, required: bool
    ) -> None:
        """drafting: whose vocabulary must be the same, if there is one.

        required: whether it is an error that the checkpoint has none.
        """
        self._required = required
        self._checkpoint = checkpoint
        self._drafting = drafting
        self._result: Tokenizer | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._make)

    def start(self) -> None:
        """Start building, unless that is done: weights may be read a second time."""
        if self._thread.ident is None:
            self._thread.start()

    def watched(self, progress: Callable[[int, int], None] | None) -> Callable[[int, int], None]:
        """Wrap `progress` (bytes done, bytes in all) so that it raises the tokenizer's error.

        Otherwise a damaged vocabulary would be reported only after 100 GB of weights.
        """

        def report(done: int, total: int) -> None:
            if self._error is not None:
                raise self._error
            if progress is not None:
                progress(done, total)

        return report

    def result(self) -> Tokenizer | None:
        """Wait for the tokenizer and return it; None without a checkpoint. Raises its error."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result

    def _make(self) -> None:
        checkpoint, self._checkpoint = self._checkpoint, None
        if checkpoint is None:
            return
        try:
            # Importing it takes 30 ms, which are a part of what is hidden behind the weights.
            from dure.text.no_tokenizer import NoTokenizer  # noqa: PLC0415
            from dure.text.tokenizer import Tokenizer, is_missing  # noqa: PLC0415

            if is_missing(checkpoint) and not self._required:
                self._result = NoTokenizer(checkpoint)
            else:
                self._result = Tokenizer.from_checkpoint(checkpoint)
            if self._drafting is not None:
                self._drafting.check_vocabulary(self._result)
        except BaseException as error:
            self._error = error
        del checkpoint
        # 450,000 short strings lay between what stays: memory that the weights would come beside.
        kernels.release_free_memory()
