"""How each `tokenizer.ggml.pre` cuts text into words before byte-level BPE merges them.

A GGUF file names its rule and leaves the rule itself to the reader. The rules below are those of
the models' own tokenizer.json, with one exception: Qwen's brings text to Unicode form NFC first.
GGUF has no word for that, and neither llama.cpp nor transformers does it for a GGUF file; nor do
we, so that ids are the same everywhere and every text comes back as it went in.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tokenizers import Regex, pre_tokenizers

from dure.errors import TokenizerError


@dataclass(frozen=True)
class PreTokenizer:
    """One rule: text is cut by each pattern in turn, matches and gaps alike becoming words.

    ignore_merges: a word that is itself in the vocabulary is taken whole, whatever the merges say.
    add_bos: a file that does not say whether texts begin with BOS means that they do.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """Return the cutter for `Tokenizer.pre_tokenizer`, ending in the byte-level alphabet."""
        parts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        # Every pattern is spelled out above, so ByteLevel only maps bytes to its alphabet.
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*parts, last])


# (?i:'s) also matches 's with LATIN SMALL LETTER LONG S, as in the models' own files.
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _words(digits: str) -> str:
    """Return GPT-4's kind of pattern: letters with one leading sign, `digits`, signs, spaces."""
    return (
        rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
    )


_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)

_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)

_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_SEED = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
)

# K-EXAONE's, whose words go on over single spaces. What a run of them has matched it keeps: nothing
# follows it, and to remember every step of a long text takes memory.
_EXAONE_MOE = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}\p{{M}}*+(?: ?\p{{L}}\p{{M}}*+)*+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)

# Words with Chinese characters end where these begin; && takes a class out of another.
_NO_HAN = r"&&[^\p{Han}]"
_KIMI = (
    r"[\p{Han}]+"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}{_NO_HAN}]*"
    rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}{_NO_HAN}]+{_CONTRACTION}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}{_NO_HAN}]+"
    rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}{_NO_HAN}]*{_CONTRACTION}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
)

_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*" + rf"|{_SPACES}",
)

# Cased letters, but not \p{L&}: the first DeepSeek tokenizer lists these and leaves out 1,360
# others, Armenian small letters among them.
_CASED = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚ"
    "Ḁ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻ"
    "Ȿ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_DEEPSEEK_HAN = "[一-龥\u0800-一가-\ud7ff]+"
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_CASED}]+",
    "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
    r"(?<!\s)\s+$",  # without the look behind, a run of spaces costs its length squared
    _DEEPSEEK_HAN,
    r"\p{N}+",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_HAN, r"\p{N}")

# What a file without a name gets; llama.cpp's choice, since no model's own tokenizer says this.
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")

# Ling's, whose possessive quantifiers give nothing back.
_BAILING = PreTokenizer(
    (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    )
)
_QWEN2 = PreTokenizer((_words(r"\p{N}"),))
_LLAMA3 = PreTokenizer((_words(r"\p{N}{1,3}"),), ignore_merges=True, add_bos=True)
_GLM = PreTokenizer((_words(r"\p{N}{1,3}"),), ignore_merges=True)
_V3 = PreTokenizer(_DEEPSEEK_V3)
_DIGITS_GPT2 = PreTokenizer((r"\p{N}", _GPT2))
_PLAIN_GPT2 = PreTokenizer((_GPT2,))

PRETOKENIZERS: Mapping[str, PreTokenizer] = MappingProxyType(
    {
        "default": PreTokenizer(_DEFAULT),
        "gpt-2": _PLAIN_GPT2,
        "gpt2": _PLAIN_GPT2,
        "mpt": _PLAIN_GPT2,
        "olmo": _PLAIN_GPT2,
        "phi-2": _PLAIN_GPT2,
        "gigachat": _PLAIN_GPT2,
        "a.x-4.0": _PLAIN_GPT2,
        "mellum": _PLAIN_GPT2,
        "exaone4": _PLAIN_GPT2,
        "trillion": _PLAIN_GPT2,
        "granite-docling": _PLAIN_GPT2,
        "smollm": _DIGITS_GPT2,
        "minerva-7b": _DIGITS_GPT2,
        "starcoder": _DIGITS_GPT2,
        "refact": _DIGITS_GPT2,
        "command-r": _DIGITS_GPT2,
        "codeshell": _DIGITS_GPT2,
        "exaone": _DIGITS_GPT2,
        "exaone-moe": PreTokenizer((_EXAONE_MOE,)),
        "qwen2": _QWEN2,
        "deepseek-r1-qwen": _QWEN2,
        "hunyuan": _QWEN2,
        "bailingmoe": _BAILING,
        "bailingmoe2": _BAILING,
        "kimi-k2": PreTokenizer((_KIMI,)),
        "megrez": _QWEN2,
        "stablelm2": _QWEN2,
        "kormo": _QWEN2,
        "f2llmv2": _QWEN2,
        "solar-open": _QWEN2,
        "seed-coder": PreTokenizer((_SEED,)),
        "tekken": PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True),
        "minicpm5": PreTokenizer((r"\p{N}{1,3}", _words(r"\p{N}+")), ignore_merges=True),
        "qwen35": PreTokenizer((_QWEN35,)),
        "deepseek-llm": PreTokenizer(_DEEPSEEK_LLM),
        "deepseek-coder": PreTokenizer(_DEEPSEEK_CODER),
        "deepseek-v3": _V3,
        "hunyuan-dense": _V3,
        "joyai-llm": _V3,
        "hy_v4": _V3,
        "minimax-m2": PreTokenizer((_GPT4O,)),
        "gpt-4o": PreTokenizer((_GPT4O,)),
        "llama4": PreTokenizer((_GPT4O,)),
        "kanana2": PreTokenizer((_GPT4O,)),
        "llama3": _LLAMA3,
        "llama-v3": _LLAMA3,
        "llama-bpe": _LLAMA3,
        "falcon3": _LLAMA3,
        "pixtral": _LLAMA3,
        "midm-2.0": _LLAMA3,
        "lfm2": _LLAMA3,
        "dbrx": PreTokenizer((_words(r"\p{N}{1,3}"),)),
        "chatglm-bpe": PreTokenizer((_words(r"\p{N}{1,3}"),)),
        "glm4": _GLM,
        "glm5": _GLM,
        "smaug-bpe": PreTokenizer((_words(r"\p{N}{1,3}"),)),
    }
)


def lookup(name: str) -> PreTokenizer:
    """Return the rule of that name.

    Raises TokenizerError naming the nearest ones when we know none.
    """
    if name in PRETOKENIZERS:
        return PRETOKENIZERS[name]
    near = difflib.get_close_matches(name, PRETOKENIZERS, n=3, cutoff=0.4) or sorted(PRETOKENIZERS)
    raise TokenizerError(
        f"the file cuts words by a rule called {name[:80]!r}, which this version does not know",
        hint=f"the nearest known ones are {', '.join(near)}; a newer dure may know this one",
    )
