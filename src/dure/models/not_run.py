"""The families that dure knows by name and does not run, each with what it would need.

A family leaves this table when it gets a file of its own. Where a name is not in the table, nobody
has looked at it yet.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dure.errors import UnsupportedModelError

if TYPE_CHECKING:
    from dure.formats.checkpoint import Checkpoint

# What stands behind a family's own name in the name of a class of transformers.
_CLASS_END = re.compile(r"(?:TextModel|Model|LMHeadModel)?(?:For[A-Z]\w*|CausalLM)?$")


@dataclass(frozen=True)
class NotRun:
    """A family that dure does not run."""

    name: str
    """As its makers publish it."""
    needs: str
    """What is missing, as the end of "it would need …"."""
    types: tuple[str, ...]
    """The values of `model_type`, of the wrapper and of its text part."""
    gguf: tuple[str, ...] = ()
    """The values of `general.architecture`, where llama.cpp has the family."""


NOT_RUN: tuple[NotRun, ...] = (
    NotRun(
        "Qwen3.8-Flash-Next",
        "residual streams, attention to chosen blocks of keys, and n-gram tables read by row",
        ("qwen4_exp", "qwen4_exp_text"),
        ("qwen4exp",),
    ),
    NotRun(
        "MiniMax-M3",
        "attention to chosen blocks of keys, with index heads of its own",
        ("minimax_m3_vl", "minimax_m3_vl_text", "minimax_m3"),
        ("minimax-m3",),
    ),
    NotRun(
        "MiniMax-01 / M1",
        "lightning attention, which is linear and decays by head",
        ("minimax", "minimax_text_01", "minimax_m1"),
    ),
    NotRun(
        "DeepSeek-V4",
        "residual streams, compressed keys and values, and experts chosen by the token's hash",
        ("deepseek_v4",),
        ("deepseek4",),
    ),
    NotRun(
        "DeepSeek-V4.1",
        "residual streams, compressed keys and values that layers share, and n-gram tables",
        ("deepseek_v41",),
    ),
    NotRun(
        "Hy4",
        "residual streams, gated latent attention with sinks, and clamped experts beside them",
        ("hy_v4", "hy_v4_vl", "hy_v4_vl_text"),
        ("hy_v4",),
    ),
    NotRun(
        "GLM-5.3-Flash",
        "residual streams, and an indexer that pools its keys",
        ("glm5_next", "glm5_next_text"),
        ("glm5-next",),
    ),
    NotRun(
        "Kimi-K3",
        "residual attention over blocks of layers, and experts in a latent space",
        ("kimi_k3", "kimi_k3_text"),
        ("kimi-k3",),
    ),
    NotRun(
        "LongCat-Flash",
        "experts that return their input, and two attentions and an MLP beside each mixture",
        ("longcat_flash", "longcat"),
    ),
    NotRun(
        "LongCat-Flash-Lite",
        "n-gram tables read by row, and experts that return their input",
        ("longcat_flash_ngram", "longcat_flash_lite", "longcat_next"),
        ("longcat-flash-ngram",),
    ),
    NotRun(
        "LongCat-2.0",
        "attention to chosen keys, n-gram tables read by row, and experts that return their input",
        ("longcat_flash_sparse", "longcat2"),
    ),
    NotRun(
        "Step-3.5 / 3.7-Flash",
        "a clamp of experts' activations that differs by layer, and heads whose number does",
        ("step3p5", "step3p7"),
        ("step35",),
    ),
    NotRun(
        "Step-3",
        "attention whose queries are products of two matrices over one key head",
        ("step3_vl", "step3_text"),
    ),
    NotRun(
        "dots3-note",
        "heads whose number and size differ by layer",
        ("dots3_note", "dots3_note_text"),
        ("dots3note",),
    ),
    NotRun(
        "Laguna",
        "heads whose number differs by layer, and attention gated by softplus",
        ("laguna",),
        ("laguna",),
    ),
    NotRun(
        "openPangu-2.0",
        "residual streams, and latent attention with an indexer in some layers, windows in others",
        ("openpangu_v2", "openpangu_v2_omni_moe", "openpangu_v2_vl_moe", "pangu_v2_moe"),
        ("openpangu_v2",),
    ),
    NotRun(
        "Nemotron-H / Nemotron-3",
        "Mamba-2 layers, and experts of two matrices with a squared ReLU",
        ("nemotron_h", "nemotron_h_omni"),
        ("nemotron_h", "nemotron_h_moe"),
    ),
    NotRun("Granite-4.0-H", "Mamba-2 layers", ("granitemoehybrid",), ("granitehybrid",)),
    NotRun("Bamba", "Mamba-2 layers", ("bamba",)),
    NotRun("Falcon-H1", "Mamba-2 heads beside those of attention", ("falcon_h1",), ("falcon-h1",)),
    NotRun("Jamba", "Mamba layers", ("jamba",), ("jamba",)),
    NotRun("Mamba", "Mamba layers", ("mamba", "falcon_mamba"), ("mamba",)),
    NotRun("Mamba-2", "Mamba-2 layers", ("mamba2",), ("mamba2",)),
    NotRun("Zamba2", "Mamba-2 layers, and attention that layers share", ("zamba", "zamba2")),
    NotRun(
        "Gemma 2",
        "soft caps of attention's scores",
        ("gemma2",),
        ("gemma2",),
    ),
    NotRun(
        "Gemma 3n",
        "several predictions of each layer (AltUp), and low-rank residuals (LAuReL)",
        ("gemma3n", "gemma3n_text"),
        ("gemma3n",),
    ),
    NotRun(
        "Llama 4",
        "attention in chunks, layers without rotation, and shares that weigh experts' inputs",
        ("llama4", "llama4_text"),
        ("llama4",),
    ),
    NotRun(
        "Command R",
        "LayerNorm, and an MLP beside attention instead of behind it",
        ("cohere", "cohere2", "cohere2_moe", "cohere_compass", "cohere_compass_text"),
        ("command-r", "cohere2"),
    ),
    NotRun("Phi-3.5-MoE", "experts chosen by SparseMixer, and LayerNorm", ("phimoe",), ("phimoe",)),
    NotRun(
        "Mistral Small 4",
        "a file of its own: latent attention whose queries grow, and a softmax router",
        ("mistral4",),
        ("mistral4",),
    ),
    NotRun(
        "Mistral Large 4",
        "an indexer over latent attention whose queries grow with their position",
        ("mistral_large4", "mistral_large4_text"),
    ),
    NotRun(
        "Ministral 8B of 2024",
        "a file of its own: Mistral's block with windows in some layers",
        ("ministral",),
    ),
    NotRun(
        "Muse",
        "embeddings that are normed, and attention gated by a matrix of its own",
        ("muse_glimmer", "muse_glimmer_text", "muse_spark", "muse_spark_text"),
        ("muse-glimmer",),
    ),
    NotRun("A.X-K1", "a norm behind each of DeepSeek-V3's mixtures", ("axk1",)),
    NotRun("A.X-K2", "norms with gates, and latent attention with an indexer", ("axk2",)),
    NotRun(
        "Sarvam",
        "a file of its own: GLM-4.5's and DeepSeek-V3's maths under Ling's names",
        ("sarvam_moe", "sarvam_mla"),
    ),
    NotRun("Youtu-LLM", "a file of its own: DeepSeek-V3's attention in a dense model", ("youtu",)),
    NotRun(
        "Trinity / AFMoE",
        "attention gated by a matrix of its own, and four norms around a mixture",
        ("afmoe",),
        ("afmoe",),
    ),
    NotRun("AFM-4.5B", "MLPs without a gate, with a squared ReLU", ("arcee",), ("arcee",)),
    NotRun(
        "Apertus",
        "MLPs without a gate, with the activation xIELU",
        ("apertus", "apertus1p5", "apertus1p5_text"),
        ("apertus",),
    ),
    NotRun(
        "Jais 2", "LayerNorm, and MLPs without a gate, with a squared ReLU", ("jais2",), ("jais2",)
    ),
    NotRun(
        "Nemotron-4 / Minitron",
        "LayerNorm, and MLPs without a gate, with a squared ReLU",
        ("nemotron",),
        ("nemotron",),
    ),
    NotRun(
        "nanochat",
        "norms without weights, and MLPs without a gate, with a squared ReLU",
        ("nanochat",),
    ),
    NotRun(
        "CWM", "a file of its own: Llama's block with windows in three layers of four", ("cwm",)
    ),
    NotRun(
        "Flint",
        "a file of its own: sinks beside norms of queries and keys, and sigmoid shares",
        ("flint",),
    ),
    NotRun(
        "Kolibri",
        "a file of its own: EXAONE 4's attention in GLM-4's block, with a biased router",
        ("kolibri1",),
    ),
    NotRun(
        "Mellum 2",
        "a file of its own: Qwen3's mixtures with windows and rotations by the layer's kind",
        ("mellum",),
        ("mellum",),
    ),
    NotRun(
        "LARA-mini",
        "a file of its own: Qwen3.5's recurrent layers, with its projections in one matrix",
        ("lara_mini",),
    ),
    NotRun(
        "OLMo-Hybrid",
        "recurrent layers that may turn their state's sign, in OLMo 3's block",
        ("olmo_hybrid",),
    ),
    NotRun("FlexOlmo", "a file of its own: OLMo 2's block with OLMoE's experts", ("flex_olmo",)),
    NotRun("OLMo 1", "LayerNorm without weights", ("olmo",), ("olmo",)),
    NotRun(
        "LFM3", "gates of attention's heads beside convolutions, and norms behind both", ("lfm3",)
    ),
    NotRun(
        "Granite 3 mixtures",
        "a file of its own: Granite's factors around a mixture of experts",
        ("granitemoe", "granitemoeshared"),
        ("granitemoe",),
    ),
    NotRun(
        "Granite with windows",
        "a file of its own: Granite's factors with sinks, and a rotation for each layer",
        ("granite_swa", "granitemoe_swa"),
        ("granite_swa",),
    ),
    NotRun(
        "HyperCLOVA X",
        "a file of its own: Granite's factors with norms behind attention and MLP",
        ("hyperclovax",),
    ),
    NotRun(
        "GLM-4-9B of 2024",
        "a file of its own: GLM-4's block with two norms",
        ("glm",),
        ("chatglm",),
    ),
    NotRun(
        "Gemma 1",
        "a file of its own: Llama's block with norms that add 1, and a scaled embedding",
        ("gemma",),
        ("gemma",),
    ),
    NotRun("VaultGemma", "soft caps of attention's scores", ("vaultgemma",)),
    NotRun("RecurrentGemma", "gated linear recurrences (RG-LRU)", ("recurrent_gemma",)),
    NotRun(
        "Inkling",
        "biases by relative position, and short convolutions around attention",
        (
            "inkling_text",
            "inkling2",
            "inkling2_text",
            "inkling2_loop",
            "inkling2_loop_text",
        ),
    ),
    NotRun(
        "HRM-Text",
        "stacks of layers that are gone through again and again",
        ("hrm_text",),
        ("hrm_text",),
    ),
    NotRun("ZAYA", "attention in a convolved latent space, and a router that is an MLP", ("zaya",)),
    NotRun("Dory", "hidden states on the unit sphere (nGPT)", ("dory",)),
    NotRun("DiffLlama", "differences of two attentions", ("diffllama",)),
    NotRun("Doge", "masks made of values, and experts found by product keys", ("doge",)),
    NotRun("JetMoE", "mixtures of attention heads", ("jetmoe",)),
    NotRun("Helium", "a file of its own: Llama's block with neighbours that rotate", ("helium",)),
    NotRun("xLSTM", "xLSTM's recurrence", ("xlstm",)),
    NotRun(
        "BitNet",
        "weights of three values, and norms within attention and MLP",
        ("bitnet",),
        ("bitnet",),
    ),
    NotRun("BLT", "patches of bytes instead of tokens", ("blt",)),
    NotRun("DBRX", "LayerNorm, and bounds of queries, keys and values", ("dbrx",), ("dbrx",)),
    NotRun(
        "Phi-1 and 2",
        "LayerNorm, and an MLP beside attention instead of behind it",
        ("phi",),
        ("phi2",),
    ),
    NotRun(
        "Phi-4-multimodal", "adapters (LoRA) that its text part needs, too", ("phi4_multimodal",)
    ),
    NotRun(
        "Falcon",
        "LayerNorm, and an MLP beside attention instead of behind it",
        ("falcon",),
        ("falcon",),
    ),
    NotRun("StableLM", "LayerNorm", ("stablelm",), ("stablelm",)),
    NotRun(
        "StarCoder 2",
        "LayerNorm, and MLPs without a gate",
        ("starcoder2", "gpt_bigcode"),
        ("starcoder2", "starcoder"),
    ),
    NotRun(
        "GPT-2 and its like",
        "LayerNorm, MLPs without a gate, and embeddings of positions or biases by distance",
        ("gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "bloom", "mpt", "codegen"),
        ("gpt2", "gptneox", "bloom", "mpt"),
    ),
    NotRun(
        "Aria", "a file of its own: Llama's block with a mixture of experts", ("aria", "aria_text")
    ),
    NotRun("RWKV", "RWKV's recurrence", ("rwkv", "rwkv7"), ("rwkv6", "rwkv7", "arwkv7")),
    NotRun(
        "EmbeddingGemma",
        "attention without a causal mask",
        (),
        ("gemma-embedding",),
    ),
    NotRun(
        "BERT and other encoders",
        "attention without a causal mask, LayerNorm, and embeddings of positions",
        (
            *("bert", "roberta", "xlm_roberta", "camembert", "distilbert", "mpnet", "electra"),
            *("albert", "deberta", "deberta_v2", "modernbert", "nomic_bert", "new", "jina_bert"),
            *("eurobert", "t5", "mt5", "t5gemma", "t5_gemma_encoder", "llama_bidirec"),
        ),
        (
            *("bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3"),
            *("modern-bert", "neo-bert", "eurobert", "t5", "t5encoder", "llama-embed"),
        ),
    ),
)


def find_not_run(checkpoint: Checkpoint) -> tuple[str, NotRun] | None:
    """Return the name by which a checkpoint's family is in the table, and the family.

    A folder is known by the model_type of its text part or its wrapper, and by the classes that
    its config names (`architectures`).
    """
    if checkpoint.kind == "gguf":
        name = checkpoint.metadata.get("general.architecture")
        return next(((str(name), each) for each in NOT_RUN if name in each.gguf), None)
    for name in _names(checkpoint.config):
        found = next((each for each in NOT_RUN if _plain(name) in map(_plain, each.types)), None)
        if found is not None:
            return name, found
    return None


def _names(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names that a config.json has for its family, its text part's first."""
    text = config.get("text_config")
    for table in (text, config) if isinstance(text, Mapping) else (config,):
        classes = table.get("architectures")
        every = [table.get("model_type"), *(classes if isinstance(classes, list) else ())]
        yield from (name for name in every if isinstance(name, str))


def _plain(name: str) -> str:
    """Return a name as a model_type and its class have in common: qwen4exp of Qwen4ExpTextModel."""
    return _CLASS_END.sub("", name[:120]).replace("_", "").lower()


def check_causal(values: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Raise UnsupportedModelError for a decoder whose tokens see those after them, too.

    values: of its config.json.
    """
    for key, sees_all in (("is_causal", (False,)), ("use_bidirectional_attention", (True, "all"))):
        if values.get(key) in sees_all:
            raise UnsupportedModelError(
                f"{checkpoint.path} has {key} = {values[key]!r}: attention without a causal mask, "
                "which dure does not compute, as each token would have to see those after it.",
                hint="embedding models with causal attention run, such as Qwen3-Embedding",
            )
