"""What a checkpoint says of embeddings and scores: sentence-transformers' files, or GGUF's keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dure.engine.pooling import PoolingMode
from dure.errors import InvalidRequestError, ModelFileError, UnsupportedModelError
from dure.formats.jsonfile import read_list, read_object
from dure.formats.multimodal import language_config
from dure.pooling.dense import Dense, module_file, read_dense

if TYPE_CHECKING:
    from dure.formats.checkpoint import Checkpoint

MAX_MODULES = 16
MAX_PROMPTS = 256
MAX_PROMPT_CHARACTERS = 16 << 10

# In the order in which sentence-transformers puts several one after the other.
_FLAGS: Mapping[str, PoolingMode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_GGUF_TYPES: Mapping[int, PoolingMode] = {1: "mean", 2: "cls", 3: "lasttoken"}
_GGUF_RANK = 4

# Of Qwen3-Reranker's model card, which other rerankers of its kind have taken over.
QWEN_RERANK_TEMPLATE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
QWEN_RERANK_INSTRUCTION = (
    "Given a web search query, retrieve relevant passages that answer the query"
)


@dataclass(frozen=True)
class Normalize:
    """A step that gives a vector the length 1."""


@dataclass(frozen=True)
class RankConfig:
    """How a query and a document become a score."""

    template: str  # with {instruction}, {query} and {document}
    instruction: str  # the one of its makers
    # Tokens whose logits are compared, of a model without a head of scores; None: "yes" and "no"
    true_id: int | None = None
    false_id: int | None = None


@dataclass(frozen=True)
class PoolingConfig:
    """What a checkpoint says of pooling, and what dure does where it says nothing."""

    source: str = ""  # where it says so; empty: nothing does, and the last token is taken
    modes: tuple[PoolingMode, ...] = ("lasttoken",)
    include_prompt: bool = True  # whether a prompt before the text is pooled, too
    steps: tuple[Normalize | Dense, ...] = (Normalize(),)  # after pooling, in this order
    prompts: Mapping[str, str] = field(default_factory=dict)  # what is written before a text
    default_prompt: str | None = None  # the name of the one that is used where none is asked for
    # Lengths to which vectors may be cut; True: any; False: it is not known to be trained for that
    matryoshka: tuple[int, ...] | bool = False
    max_tokens: int | None = None  # of a text, if fewer than the context
    add_eos: bool = False  # the tokenizer forgets the token whose state is taken
    rank: RankConfig | None = None

    @property
    def is_said(self) -> bool:
        """Whether the checkpoint says how it is pooled, so that it is made for embeddings."""
        return bool(self.source)

    def check_writes(self, name: str) -> None:
        """Raise InvalidRequestError if the checkpoint of this name is made for no text."""
        if self.is_said:
            made = "scores" if self.rank is not None else "embeddings"
            raise InvalidRequestError(
                f"{name} makes {made}, and writes no text ({self.source} says so).",
                hint="/v1/rerank takes it" if self.rank is not None else "/v1/embeddings takes it",
            )


def read_pooling(checkpoint: Checkpoint) -> PoolingConfig:
    """Read what the checkpoint says of pooling.

    Raises ModelFileError for damaged files, UnsupportedModelError for modules that dure has not.
    """
    if checkpoint.kind == "gguf":
        return _of_gguf(checkpoint)
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    if (folder / "modules.json").exists():
        return _of_modules(folder, checkpoint)
    rank = _rank_by_name(checkpoint)
    source = "score.weight" if "score.weight" in checkpoint.tensors else ""
    return PoolingConfig(source, matryoshka=_matryoshka(checkpoint), rank=rank)


def _architecture(checkpoint: Checkpoint) -> str:
    """Return the family's name in the file; empty if it says none."""
    if checkpoint.kind == "gguf":
        return str(checkpoint.metadata.get("general.architecture", ""))
    return str(language_config(checkpoint.config).get("model_type", ""))


def _of_gguf(checkpoint: Checkpoint) -> PoolingConfig:
    metadata, name = checkpoint.metadata, _architecture(checkpoint)
    kind: Any = metadata.get(f"{name}.pooling_type")
    if kind == _GGUF_RANK or "cls.output.weight" in checkpoint.tensors:
        return PoolingConfig(source="its scores", rank=_rank_of_gguf(checkpoint))
    if kind not in _GGUF_TYPES:
        return PoolingConfig(rank=_rank_by_name(checkpoint))
    is_qwen = name == "qwen3"
    return PoolingConfig(
        source="pooling_type",
        modes=(_GGUF_TYPES[kind],),
        prompts=_QWEN_PROMPTS if is_qwen else {},
        matryoshka=is_qwen,
        # The first files of Qwen3-Embedding were made before converters knew of its last token.
        add_eos=is_qwen and "tokenizer.ggml.add_eos_token" not in metadata,
    )


# Of Qwen3-Embedding's config_sentence_transformers.json, which a GGUF has no place for.
_QWEN_PROMPTS = {
    "query": f"Instruct: {QWEN_RERANK_INSTRUCTION}\nQuery:",
    "document": "",
}


def _rank_of_gguf(checkpoint: Checkpoint) -> RankConfig:
    template = checkpoint.metadata.get("tokenizer.chat_template.rerank")
    if not isinstance(template, str) or not {"{query}", "{document}"} <= _fields(template):
        template = QWEN_RERANK_TEMPLATE
    return RankConfig(template[:MAX_PROMPT_CHARACTERS], QWEN_RERANK_INSTRUCTION)


def _fields(template: str) -> set[str]:
    return {each for each in ("{instruction}", "{query}", "{document}") if each in template}


def _rank_by_name(checkpoint: Checkpoint) -> RankConfig | None:
    """Return how a Qwen3 model ranks that is a reranker by its name or by its head; else None."""
    has_scores = "score.weight" in checkpoint.tensors
    named = str(checkpoint.metadata.get("general.name", ""))
    # In a hub's cache the name is that of a folder farther up.
    is_named = any("reranker" in each.lower() for each in (*checkpoint.path.parts[-4:], named))
    if _architecture(checkpoint) != "qwen3" or not (has_scores or is_named):
        return None
    return RankConfig(QWEN_RERANK_TEMPLATE, QWEN_RERANK_INSTRUCTION)


def _of_modules(folder: Path, checkpoint: Checkpoint) -> PoolingConfig:
    """Read the folder of sentence-transformers."""
    modules = read_list(folder / "modules.json")
    modes: tuple[PoolingMode, ...] | None = None
    include_prompt = True
    steps: list[Normalize | Dense] = []
    rank = _rank_by_name(checkpoint)
    if len(modules) > MAX_MODULES:
        raise ModelFileError(f"{folder}/modules.json has more than {MAX_MODULES} modules.")
    for module in modules:
        kind, place = _module(folder, module)
        if kind == "Pooling":
            settings = _settings(place)
            modes, include_prompt = _modes(settings, place), settings.get("include_prompt", True)
        elif kind == "Normalize":
            steps.append(Normalize())
        elif kind == "Dense":
            steps.append(read_dense(place))
        elif kind == "LogitScore":
            rank = _of_logits(_settings(place), place)
        elif kind not in ("Transformer", "Dropout"):
            raise UnsupportedModelError(
                f"{folder}/modules.json has the module {kind[:60]!r}, which dure does not compute; "
                "it computes Transformer, Pooling, Dense, Normalize and LogitScore."
            )
    own = _settings(folder, "config_sentence_transformers.json")
    prompts = _prompts(own.get("prompts"), folder)
    if modes is None:  # a CrossEncoder's, which says how it scores
        return PoolingConfig(source="modules.json" if rank else "", prompts=prompts, rank=rank)
    is_qwen = _architecture(checkpoint) == "qwen3" and modes == ("lasttoken",)
    longest = _settings(folder, "sentence_bert_config.json").get("max_seq_length")
    default = own.get("default_prompt_name")
    return PoolingConfig(
        source="1_Pooling/config.json",
        modes=modes,
        include_prompt=include_prompt is not False,
        steps=tuple(steps),
        prompts=prompts,
        default_prompt=default if isinstance(default, str) and default in prompts else None,
        matryoshka=_matryoshka(checkpoint) or is_qwen,
        max_tokens=longest if type(longest) is int and longest > 0 else None,
        rank=rank,
    )


def _module(folder: Path, module: object) -> tuple[str, Path]:
    """Return a module's kind and its folder, which is one in the model's."""
    kind = module.get("type") if isinstance(module, Mapping) else None
    place = module.get("path", "") if isinstance(module, Mapping) else None
    if not isinstance(kind, str) or not isinstance(place, str):
        raise ModelFileError(f"{folder}/modules.json has a module without a type or a path.")
    if place.startswith(".") or any(mark in place for mark in "/\\:\0"):
        raise ModelFileError(f"{folder}/modules.json names the folder {place[:60]!r}.")
    return kind.rpartition(".")[2], folder / place if place else folder


def _settings(folder: Path, name: str = "config.json") -> dict[str, Any]:
    path = module_file(folder, name)
    return read_object(path) if path.exists() else {}


def _modes(settings: Mapping[str, Any], place: Path) -> tuple[PoolingMode, ...]:
    """Return the modes, which are named (since sentence-transformers 5.4) or flags."""
    named = settings.get("pooling_mode")
    if named is None:
        flagged = tuple(mode for flag, mode in _FLAGS.items() if settings.get(flag) is True)
        return flagged or ("mean",)
    modes = tuple(named) if isinstance(named, list) else (named,)
    for mode in modes:
        if mode not in _FLAGS.values():
            raise UnsupportedModelError(
                f"{place}/config.json pools by {str(mode)[:60]!r}, which dure does not compute; "
                f"it computes {', '.join(_FLAGS.values())}."
            )
    if not modes:
        raise ModelFileError(f"{place}/config.json names no pooling_mode.")
    return cast("tuple[PoolingMode, ...]", modes)


def _of_logits(settings: Mapping[str, Any], place: Path) -> RankConfig:
    """Return how a causal model's logits are scores, in the way of Qwen3-Reranker."""
    true_id, false_id = (settings.get(f"{name}_token_id") for name in ("true", "false"))
    if type(true_id) is not int or type(false_id) is not int:
        raise UnsupportedModelError(
            f"{place}/config.json does not name both true_token_id and false_token_id; dure ranks "
            "by two tokens, as Qwen3-Reranker does."
        )
    return RankConfig(QWEN_RERANK_TEMPLATE, QWEN_RERANK_INSTRUCTION, true_id, false_id)


def _prompts(prompts: object, folder: Path) -> dict[str, str]:
    """Return what may be written before a text, by name."""
    if prompts is None:
        return {}
    table = prompts if isinstance(prompts, Mapping) else {"": None}
    texts: dict[str, Any] = {str(name): text for name, text in table.items()}
    if len(texts) > MAX_PROMPTS or not all(
        isinstance(text, str) and len(text) <= MAX_PROMPT_CHARACTERS for text in texts.values()
    ):
        raise ModelFileError(
            f"{folder}/config_sentence_transformers.json has prompts that are not at most "
            f"{MAX_PROMPTS} texts of {MAX_PROMPT_CHARACTERS:,} characters."
        )
    return texts


def _matryoshka(checkpoint: Checkpoint) -> tuple[int, ...] | bool:
    """Return the lengths to which vectors may be cut, by the keys that vLLM reads."""
    lengths = checkpoint.config.get("matryoshka_dimensions")
    if isinstance(lengths, list) and lengths and all(type(each) is int for each in lengths):
        return tuple(sorted(lengths))
    return checkpoint.config.get("is_matryoshka") is True
