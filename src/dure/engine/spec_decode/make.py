"""Which guesses does a setting mean?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dure.engine.model_runner import ModelRunner
from dure.engine.sampler import Sampler
from dure.engine.spec_decode.draft_model import DraftModel
from dure.engine.spec_decode.forced import GrammarDrafter
from dure.engine.spec_decode.heads import DraftHeads
from dure.engine.spec_decode.several_heads import SeveralHeads
from dure.engine.spec_decode.speculator import Speculator
from dure.engine.spec_decode.text import TextDrafter

if TYPE_CHECKING:
    from dure.engine.passes import Runner
    from dure.engine.spec_decode.speculator import ModelSource, TextSource


def make_drafter(speculate: str, runner: Runner, *, threads: int) -> Speculator | None:
    """Make what guesses tokens for a runner, which has the models that `speculate` asks for.

    speculate: "auto", "off", "text", "heads" or a model's name, as LLM takes it.
    """
    if speculate == "off":
        return None
    texts: list[TextSource] = [GrammarDrafter()]
    if speculate != "heads":
        texts.append(TextDrafter())
    model: ModelSource | None = None
    sampler = Sampler(threads=threads)
    if not isinstance(runner, ModelRunner):
        return Speculator(texts, None)
    if runner.draft_model is not None:
        model = DraftModel(runner, sampler)
    elif runner.num_draft_heads and speculate != "text":
        made = DraftHeads if runner.num_draft_heads == 1 else SeveralHeads
        model = made(runner, sampler)
    return Speculator(texts, model)
