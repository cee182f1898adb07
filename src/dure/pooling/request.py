"""Requests of texts for a model that embeds or ranks: their tokens, and what vectors become."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Protocol

from dure.engine.pooling import PoolingParams
from dure.engine.request import check_prompt
from dure.errors import InvalidRequestError, PromptLengthError
from dure.pooling.dense import Dense
from dure.pooling.vectors import Embedder, Scorer, ScoringModel
from dure.text.length import LONG, least_tokens, longest_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from dure.pooling.config import PoolingConfig
    from dure.text.tokenizer import Tokenizer

Input = str | Sequence[int]
"""A text, or its token ids, to which nothing is added."""

MAX_TEXTS = 2048
"""Texts of one request, as in OpenAI's API."""

MAX_TOKENS = 300_000
"""Tokens of all texts of one request, as in OpenAI's API."""

MAX_REPEATED = LONG * MAX_TOKENS
"""Characters of a prompt or a query, times the texts that each have it: more are more tokens than
that, or are tokenised only to be cut."""

_MARK = re.compile(r"(<\|[^<>|]*\|>)")
_FIELD = re.compile(r"\{(instruction|query|document)\}")
# What ends a text for Qwen3-Embedding, where its file does not say it.
_QWEN_END = "<|endoftext|>"


class PooledModel(ScoringModel, Protocol):
    """What embeddings and ranks need of a model, besides its hidden states."""

    @property
    def vocab_size(self) -> int:
        """Token ids are 0 to vocab_size - 1."""
        ...

    @property
    def hidden_size(self) -> int:
        """Numbers of a hidden state."""
        ...


@dataclass(frozen=True)
class PreparedPooling:
    """Checked texts: their tokens, how these are pooled, and what each vector becomes."""

    prompts: tuple[tuple[int, ...], ...]
    pooling: PoolingParams
    finish: Embedder | Scorer
    cache_salt: str = ""
    priority: int = 0
    num_cut: int = 0  # texts that were too long, and were cut
    is_said: bool = True  # whether the checkpoint says how it is pooled

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(map(len, self.prompts))

    @property
    def num_choices(self) -> int:
        """Answers of the request: all texts are one."""
        return 1

    @property
    def max_tokens(self) -> int:
        """Tokens that it may write: none."""
        return 0


class PoolingBuilder:
    """Builds requests of one model: embeddings, and ranks if it is a reranker. Thread-safe."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: PoolingConfig,
        *,
        model: PooledModel,
        name: str,
        context: int,
    ) -> None:
        """context: tokens of a text at most. Raises ModelFileError if a layer does not fit."""
        self.config = config
        self.width = len(config.modes) * model.hidden_size
        """Numbers of a vector, all of them."""
        for step in config.steps:
            if isinstance(step, Dense):
                step.check_inputs(self.width)
                self.width = step.outputs
        self._model = model
        self.longest = min(context, config.max_tokens or context)
        self._tokenizer, self._name, self._vocab_size = tokenizer, name, model.vocab_size

    @cached_property
    def scorer(self) -> Scorer:
        """What makes scores of vectors. Raises InvalidRequestError if the model ranks nothing."""
        if self.config.rank is None:
            raise InvalidRequestError(
                f"{self._name} is no reranker: nothing says how it scores a document.",
                hint="load a model such as Qwen3-Reranker, or compare embeddings",
            )
        return Scorer(self._model, self.config.rank, self._tokenizer)

    def embeddings(
        self,
        texts: Sequence[Input],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        dimensions: int | None = None,
        normalize: bool | None = None,
        truncate: bool | int = False,
        cache_salt: str = "",
        priority: int = 0,
    ) -> PreparedPooling:
        """Build the request for one embedding of each text.

        prompt: written before each text; prompt_name: the name of one that the checkpoint brings.
        dimensions: numbers of each vector. normalize: whether its length is made 1; None: as the
        checkpoint says. truncate: whether what is too long is cut, or after how many tokens.
        Raises InvalidRequestError or PromptLengthError.
        """
        _check_count(len(texts))
        self._check_dimensions(dimensions)
        before = self._prompt(prompt, prompt_name)
        _check_repeated("prompt", len(before), len(texts))
        has_ids = any(not isinstance(text, str) for text in texts)
        if has_ids and before:
            before = self._before_ids(prompt, prompt_name, texts)
        made = _collected(lambda text: self._embedded(text, before, truncate), texts)
        skip = 0
        if before and not self.config.include_prompt:
            start, _ = self._tokenizer.around
            inner = self._tokenizer.encode(before, add_special=False)
            skip = len(start) + len(inner)
        return PreparedPooling(
            tuple(ids for ids, _ in made),
            PoolingParams(self.config.modes, skip),
            Embedder(self.config.steps, dimensions, normalize),
            cache_salt,
            priority,
            sum(cut for _, cut in made),
            self.config.is_said,
        )

    def ranking(
        self,
        query: str,
        documents: Sequence[str],
        *,
        instruction: str | None = None,
        truncate: bool | int = False,
        cache_salt: str = "",
        priority: int = 0,
    ) -> PreparedPooling:
        """Build the request for the score of each document as an answer to the query.

        instruction: what is looked for, in a sentence; None: the one of the model's makers.
        truncate: whether documents that are too long are cut, or after how many tokens. Raises
        InvalidRequestError or PromptLengthError.
        """
        scorer, rank = self.scorer, self.config.rank
        assert rank is not None
        _check_count(len(documents))
        fields = {"instruction": rank.instruction if instruction is None else instruction}
        fields["query"] = query
        _check_repeated("query", sum(map(len, fields.values())), len(documents))
        pieces = _MARK.split(rank.template)
        made = _collected(
            lambda text: self._pair(pieces, {**fields, "document": text}, truncate), documents
        )
        return PreparedPooling(
            tuple(ids for ids, _ in made),
            PoolingParams(),
            scorer,
            cache_salt,
            priority,
            sum(cut for _, cut in made),
        )

    def _check_dimensions(self, dimensions: int | None) -> None:
        """Raise InvalidRequestError if vectors have no part of so many numbers."""
        if dimensions is None or dimensions == self.width:
            return
        if not 1 <= dimensions <= self.width:
            raise InvalidRequestError(
                f"dimensions is {dimensions:,}, but the vectors of {self._name} have "
                f"{self.width:,} numbers.",
                hint="leave it out for all",
            )
        known = self.config.matryoshka
        if known is False:
            raise InvalidRequestError(
                f"{self._name} is not known to be trained for shorter vectors (Matryoshka), so the "
                f"first {dimensions:,} of its {self.width:,} numbers would be worth little.",
                hint="leave dimensions out, or cut and normalise the vectors yourself",
            )
        if known is not True and dimensions not in known:
            raise InvalidRequestError(
                f"dimensions is {dimensions:,}, and {self._name} is trained for "
                f"{', '.join(f'{each:,}' for each in known)}.",
                hint="take one of these, or leave it out for all",
            )

    def _prompt(self, prompt: str | None, name: str | None) -> str:
        """Return what is written before each text."""
        if prompt is not None and name is not None:
            raise InvalidRequestError(
                "Give either prompt or prompt_name, not both.",
                hint="prompt is the text itself, prompt_name the name of one of the checkpoint's",
            )
        name = self.config.default_prompt if name is None else name
        if prompt is not None or name is None:
            return prompt or ""
        if name not in self.config.prompts:
            known = ", ".join(self.config.prompts)
            raise InvalidRequestError(
                f"{self._name} has no prompt called {name[:60]!r}.",
                hint=f"it has {known}" if known else "it has none: give the text itself as prompt",
            )
        return self.config.prompts[name]

    def _before_ids(self, prompt: str | None, name: str | None, texts: Sequence[Input]) -> str:
        """Return what is written before texts some of which are token ids: nothing.

        Raises InvalidRequestError where something was asked for, or texts have the default prompt.
        """
        if prompt is not None or name is not None:
            raise InvalidRequestError(
                "Token ids are taken as they are: no prompt is written before them.",
                hint="put the prompt's ids before them, or give texts",
            )
        if any(isinstance(text, str) for text in texts):
            raise InvalidRequestError(
                f"Texts get the default prompt of {self._name}, and token ids are taken as they "
                "are: they cannot be embedded at once.",
                hint="embed the texts and the token ids one after the other",
            )
        return ""

    def _embedded(
        self, text: Input, prompt: str, truncate: bool | int
    ) -> tuple[tuple[int, ...], bool]:
        """Return the tokens of a text behind its prompt, and whether it was cut."""
        longest = self._longest(truncate)
        if not isinstance(text, str):
            return self._cut(check_prompt(text, self._vocab_size), (), longest, truncate)
        given = prompt + text
        text = self._affordable(given, longest, truncate)
        start, end = self._tokenizer.around
        if self.config.add_eos and not end:
            added = self._tokenizer.token_id(_QWEN_END)
            end = () if added is None else (added,)
        ids = (*start, *self._tokenizer.encode(text, add_special=False))
        if not ids and not end:
            raise InvalidRequestError(
                "A text is empty: it has no tokens, and at least 1 is needed.",
                hint="leave it out",
            )
        made, cut = self._cut(ids, end, longest, truncate)
        return made, cut or len(text) < len(given)

    def _pair(
        self, pieces: Sequence[str], fields: dict[str, str], truncate: bool | int
    ) -> tuple[tuple[int, ...], bool]:
        """Return the tokens of a query and a document, and whether this was cut.

        pieces: the template, cut at its marks. Marks in the fields are ordinary text.
        """
        encode = partial(self._tokenizer.encode, add_special=False, parse_special=False)
        for name in ("query", "instruction"):
            self._affordable(fields[name], self.longest, False)
        document = self._affordable(fields["document"], self.longest, truncate)
        cut = len(document) < len(fields["document"])
        if not isinstance(truncate, bool):
            ids = encode(document)
            if len(ids) > truncate:
                document, cut = self._tokenizer.decode(ids[:truncate]), True
        whole: list[tuple[int, ...]] = []
        place = least = 0  # the piece with the document, and its tokens before this
        for piece in pieces:
            names = _FIELD.findall(piece)
            if "document" in names:
                place, least = len(whole), len(encode(_filled(piece, fields, "")))
            text = _filled(piece, fields, document)
            ids = encode(text) if names else self._tokenizer.encode(text, add_special=False)
            whole.append(tuple(ids))
        room = self.longest - sum(map(len, whole)) + len(whole[place])
        whole[place], shorter = self._cut(whole[place], (), room, truncate and room > least)
        return tuple(token for ids in whole for token in ids), cut or shorter

    def _longest(self, truncate: bool | int) -> int:
        """Return after how many tokens a text ends, if it is to be cut."""
        return self.longest if isinstance(truncate, bool) else min(self.longest, truncate)

    def _affordable(self, text: str, longest: int, truncate: bool | int) -> str:
        """Return the text, or its beginning if it is to be cut; refuse one far too long."""
        most = longest_text(longest)
        if truncate is not False:
            return text[:most]
        encode = partial(self._tokenizer.encode, add_special=False)
        least = least_tokens(encode, [text], longest)
        if least > longest or len(text) > most:
            raise self._too_long(f"{len(text):,} characters and at least {max(1, least):,} tokens")
        return text

    def _cut(
        self, ids: tuple[int, ...], end: tuple[int, ...], longest: int, truncate: bool | int
    ) -> tuple[tuple[int, ...], bool]:
        """Return ids and end, `longest` of them if they are to be cut, and whether they were."""
        if len(ids) + len(end) <= longest:
            return (*ids, *end), False
        if truncate is False or longest <= len(end):
            raise self._too_long(f"{len(ids) + len(end):,} tokens")
        return (*ids[: longest - len(end)], *end), True

    def _too_long(self, size: str) -> PromptLengthError:
        return PromptLengthError(
            f"A text has {size}, and {self._name} takes {self.longest:,} tokens at once.",
            hint="shorten it, have it cut (truncate), or load the model with a larger context",
        )


def _filled(piece: str, fields: Mapping[str, str], document: str) -> str:
    """Return a piece of a template with its fields, in one go: these are no templates."""
    values = {**fields, "document": document}
    return _FIELD.sub(lambda found: values[found[1]], piece)


def _collected(
    tokens_of: Callable[[str], tuple[tuple[int, ...], bool]]
    | Callable[[Input], tuple[tuple[int, ...], bool]],
    texts: Sequence[Input],
) -> list[tuple[tuple[int, ...], bool]]:
    """Return the tokens of each text, while they are not too many together."""
    made: list[tuple[tuple[int, ...], bool]] = []
    total = 0
    for text in texts:
        made.append(tokens_of(text))  # type: ignore[arg-type]
        total += len(made[-1][0])
        if total > MAX_TOKENS:
            raise InvalidRequestError(
                f"The first {len(made):,} of {len(texts):,} texts have {total:,} tokens; one "
                f"request may have {MAX_TOKENS:,}.",
                hint="send the texts in several requests",
            )
    return made


def _check_count(count: int) -> None:
    if count > MAX_TEXTS:
        raise InvalidRequestError(
            f"There are {count:,} texts, and one request may have {MAX_TEXTS:,}.",
            hint="send them in several requests",
        )


def _check_repeated(what: str, characters: int, count: int) -> None:
    if characters * count > MAX_REPEATED:
        raise InvalidRequestError(
            f"The {what} of {characters:,} characters is in each of {count:,} texts, which is "
            f"{characters * count:,} characters; one request may have {MAX_REPEATED:,}.",
            hint=f"shorten the {what}, or send fewer texts at once",
        )
