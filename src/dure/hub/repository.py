"""Choose the model's files in a repository: one set of GGUF files, or safetensors with configs.

Files that can run code are never chosen: no .bin, .pt or .pkl (pickles), no .py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dure.errors import DownloadError, ModelNotFoundError, UnsupportedModelError
from dure.hub.types import Check

MAX_FILES = 4096
# What is taken where the user names no quantisation: the best answers for the bytes come first.
PREFERRED = (
    *("Q4_K_M", "Q4_K_S", "Q4_0", "Q5_K_M", "Q8_0", "Q6_K", "Q5_0", "Q4_1", "IQ4_XS", "IQ4_NL"),
    *("MXFP4", "Q3_K_M", "Q2_K", "BF16", "F16", "F32"),
)

COMPANIONS = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors.index.json",
    # Of sentence-transformers: how hidden states become an embedding, or a score
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
}
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
_MODULE = re.compile(r"(\d_\w{1,40})/(config\.json|model\.safetensors)")
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})$")
_QUANT = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q\d_[0-9A-Z]+(?:_[A-Z0-9]+)*|TQ\d_\d|MXFP4(?:_MOE)?|BF16|FP?16|FP?32))$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository: its path, and the check of its bytes."""

    path: str
    check: Check

    @property
    def name(self) -> str:
        """Its name on this machine: the last part of its path.

        The two files of a module of sentence-transformers, which lie in a folder of their own in a
        repository, are called 1_Pooling.config.json and 2_Dense.weights.
        """
        module = _MODULE.fullmatch(self.path)
        if module is not None:
            return f"{module[1]}.{'config.json' if module[2] == 'config.json' else 'weights'}"
        return self.path.rsplit("/", 1)[-1]


def check_paths(files: Iterable[RemoteFile]) -> None:
    """Raise DownloadError if a path would lead out of the folder it is put in."""
    for file in files:
        parts = file.path.split("/")
        bad = "\\" in file.path or ":" in file.path or any(ord(c) < 32 for c in file.path)
        if bad or any(part in ("", ".", "..") for part in parts) or parts[-1].startswith("."):
            raise DownloadError(
                f"The repository has a file named {file.path!r}, which would leave its folder.",
                hint="nothing was fetched; do not use this repository",
            )


def choose_files(files: Sequence[RemoteFile], quant: str, repo: str) -> list[RemoteFile]:
    """Choose the files of `repo` to fetch; of GGUF files the first is the one to open.

    `quant` is a quantisation ("Q4_K_M") or a file's name; "" takes safetensors where there are
    any, else the first of PREFERRED. Raises ModelNotFoundError if the repository lacks it.
    """
    if len(files) > MAX_FILES:
        raise DownloadError(f"{repo} lists more than {MAX_FILES} files: not a model's repository.")
    ggufs = [f for f in files if f.name.casefold().endswith(".gguf") and not _is_projector(f)]
    tensors = _safetensors(files)
    if quant:
        return _of_quant(ggufs, quant, repo)
    if tensors and any(f.path == "config.json" for f in files):
        companions = [f for f in files if f.path in COMPANIONS or f.path.endswith(".tiktoken")]
        companions += [f for f in files if _MODULE.fullmatch(f.path)]
        return tensors + [f for f in companions if f not in tensors]
    if ggufs:
        return _of_quant(ggufs, _preferred(ggufs), repo)
    raise _no_weights(files, repo)


def has_tokenizer(files: Iterable[RemoteFile]) -> bool:
    """Whether there is a tokenizer of any kind: a folder without one is no whole model."""
    return any(
        file.path in _TOKENIZERS or file.path.endswith((".tiktoken", "tiktoken.model"))
        for file in files
    )


def later_part(name: str) -> bool:
    """Whether a GGUF file's name is that of a part that is not the first of its set."""
    split = _SPLIT.search(name.rpartition(".")[0])
    return split is not None and int(split[1]) > 1


def quant_of(path: str) -> str:
    """Return the quantisation in a GGUF file's name, in capitals, or ""."""
    stem = _SPLIT.sub("", path.rsplit(".", 1)[0])
    match = _QUANT.search(stem)
    if match is None and "/" in path:  # Q4_K_M/model-00001-of-00004.gguf
        match = _QUANT.search(path.rsplit("/", 1)[0])
    name = match[1].upper() if match else ""
    return {"FP16": "F16", "FP32": "F32", "MXFP4_MOE": "MXFP4"}.get(name, name)


def _of_quant(ggufs: Sequence[RemoteFile], quant: str, repo: str) -> list[RemoteFile]:
    wanted = {"FP16": "F16", "FP32": "F32"}.get(quant.upper(), quant.upper())
    chosen = [f for f in ggufs if quant_of(f.path) == wanted]
    if not chosen:
        chosen = _called(quant, ggufs, repo)
    if not chosen:
        chosen = [f for f in ggufs if quant_of(f.path) == f"UD-{wanted}"]
    if not chosen:
        there = ", ".join(sorted({quant_of(f.path) or f.name for f in ggufs})) or "no GGUF file"
        raise ModelNotFoundError(
            f"{repo} has no GGUF file in {quant}.", hint=f"it has: {there}" if ggufs else there
        )
    return _whole_set(_only_model(chosen, wanted, repo), ggufs, repo)


def _only_model(files: Sequence[RemoteFile], quant: str, repo: str) -> RemoteFile:
    """Return the first file of the model that is nearest to the top, as one file where it is so.

    Raises ModelNotFoundError for several models that are equally near: none is guessed.
    """
    top = min(file.path.count("/") for file in files)
    models: dict[str, RemoteFile] = {}
    for file in sorted(files, key=lambda f: (_SPLIT.search(_stem(f.path)) is not None, f.path)):
        if file.path.count("/") == top:
            models.setdefault(_SPLIT.sub("", _stem(file.path)).casefold(), file)
    if len(models) == 1:
        return next(iter(models.values()))
    paths = sorted(file.path for file in models.values())
    raise ModelNotFoundError(
        f"{repo} has several models in {quant}: {', '.join(paths)[:300]}.",
        hint=f"name the file: {repo}/{paths[0]}",
    )


def _stem(path: str) -> str:
    return path.rsplit(".", 1)[0]


def _called(name: str, ggufs: Sequence[RemoteFile], repo: str) -> list[RemoteFile]:
    """Return the file called `name`, that nearest to the top; empty if there is none.

    Raises ModelNotFoundError for several that are equally near: they are different models.
    """
    found = sorted(
        (f for f in ggufs if f.name.casefold() == name.casefold()), key=lambda f: f.path.count("/")
    )
    if len(found) > 1 and found[0].path.count("/") == found[1].path.count("/"):
        paths = ", ".join(sorted(f.path for f in found))
        quants = " or ".join(sorted({q for f in found if (q := quant_of(f.path))}))
        raise ModelNotFoundError(
            f"{repo} has several files called {name}: {paths[:300]}.",
            hint=f"name the quantisation: {repo}:{quants}"
            if quants
            else "download the one by hand",
        )
    return found[:1]


def _whole_set(first: RemoteFile, ggufs: Sequence[RemoteFile], repo: str) -> list[RemoteFile]:
    """Return the file `first`; of a split file all its parts of `ggufs` in order."""
    split = _SPLIT.search(first.path.rsplit(".", 1)[0])
    if split is None:
        return [first]
    base = first.path[: split.start()]
    ending = f"-of-{split[2]}"
    parts = sorted(
        (f for f in ggufs if f.path[: split.start()] == base and f.path[:-5].endswith(ending)),
        key=lambda f: f.path,
    )
    if len(parts) != int(split[2]):
        raise DownloadError(
            f"{repo} has {len(parts)} of the {int(split[2])} parts of {first.name}."
        )
    return parts


def _preferred(ggufs: Sequence[RemoteFile]) -> str:
    there = {quant_of(f.path) for f in ggufs}
    # Unsloth's dynamic mixtures have the name of what they are nearest to, after UD-.
    forms = [form for q in PREFERRED for form in (q, f"UD-{q}", f"UD-{q[:-1]}XL")]
    best = next((q for q in forms if q in there), "")
    return best or min(ggufs, key=lambda f: f.path).name


def _safetensors(files: Sequence[RemoteFile]) -> list[RemoteFile]:
    top = [f for f in files if f.path.endswith(".safetensors") and "/" not in f.path]
    named = [f for f in top if f.path.startswith("model")]
    # Mistral's repositories hold everything twice; the second time as consolidated.safetensors
    other = [f for f in top if not f.path.startswith(("consolidated", "adapter"))]
    return sorted(named or other, key=lambda f: f.path)


def _is_projector(file: RemoteFile) -> bool:
    return "mmproj" in file.name.casefold() or file.name.casefold().startswith("imatrix")


def _no_weights(files: Sequence[RemoteFile], repo: str) -> UnsupportedModelError:
    names = {f.name for f in files}
    if any(name.startswith("adapter_model") for name in names):
        return UnsupportedModelError(
            f"{repo} holds an adapter, not a model.", hint="name the model it was trained on"
        )
    if any(name.endswith((".bin", ".pt", ".pth", ".pkl")) for name in names):
        return UnsupportedModelError(
            f"{repo} holds only pickled weights (.bin, .pt), which can run code when opened.",
            hint="look for a repository of the same model with safetensors or GGUF files",
        )
    return UnsupportedModelError(
        f"{repo} holds no model we can read.",
        hint="a model is *.gguf files, or *.safetensors with config.json and a tokenizer",
    )
