"""Texts that tokenizers get wrong: the same list on every machine and every run."""

from __future__ import annotations

import random
import unicodedata

SPECIALS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|begin_of_text|>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "</s>",
    "<s>",
    "<unk>",
    "<0x0A>",
    "[e~[",
    "]~b]",
    "[unused10]",
    "[PAD151935]",
)

_FIXED = (
    "",
    " ",
    "  ",
    "   ",
    "\n",
    "\r\n",
    "\t",
    "\n\n",
    "\n\n\n",
    "\t\n",
    " \n \n ",
    "\r\r\n\n\r",
    "\u00a0",
    "a\u00a0b\u00a0\u00a0c",
    "\u3000전각\u3000공백",
    "\u2028line\u2029para\x85next\x0bvt\x0cff",
    "\u200b\u200c\u200d\u2060\ufeff",
    "\x00",
    "a\x00b\x01\x1f\x7f",
    "\ufffd\ufffe\uffff",
    "\U0010ffff\U000e0001\U000f0000",
    "Hello, world!",
    " Hello",
    "Hello ",
    "  Hello  world  ",
    "Hello\n    world\n\tthere\n",
    "안녕하세요, 세계! 두레는 함께 일하는 마을 풍습입니다.",
    "ㄱㄴㄷㅏㅑㅓ 한글 자모 ㅋㅋㅋㅋ ㅠㅠ",
    unicodedata.normalize("NFD", "한글 정준 분해 각낱닭"),
    "가나다라마바사아자차카타파하갸냐댜랴뫄뷔쒜",
    "你好，世界！这是一个测试。",
    "「繁體字」與『简体字』——混用……",
    "日本語のテスト：ひらがな、カタカナ、漢字。ﾊﾝｶｸ",
    "𠀀𠮷𡈽𪚥 罕见字",
    "Ελληνικά και Кириллица и Հայերեն և ქართული",
    "السلام عليكم ورحمة الله ١٢٣",
    "שָׁלוֹם עוֹלָם",
    "\u202eright to left\u202c and \u2067isolate\u2069",
    "हिन्दी में एक वाक्य क्षत्रिय",
    "ภาษาไทยไม่มีช่องว่าง",
    "தமிழ் বাংলা ಕನ್ನಡ മലയാളം",
    "😀😃😄 👍🏽👩🏾‍🚀 👨‍👩‍👧‍👦 🏳️‍🌈",
    "🇰🇷🇨🇳🇺🇸🏴󠁧󠁢󠁳󠁣󠁴󠁿",
    "1️⃣2️⃣#️⃣ ☺️ ☺",
    "e\u0301 é n\u0303 ñ A\u030a Å Å",
    "Z\u0351\u036b\u0343a\u0321\u0353l\u0322g\u0334o\u0358",
    "q\u0323\u0307 q\u0307\u0323",
    "ﬁ ﬂ ﬀ ½ ² ³ Ⅷ ⅷ ① ㈱ ㎏",
    "ſ's it'ſ IT'S I'LL WE'VE he'd 'Tis 'RE",
    "I'm you're he's we've they'll I'd can't 'twas rock'n'roll",
    "‘curly’ “quotes” it’s",
    "0123456789",
    "1234567890" * 20,
    "3.14159265358979 1,000,000 1e-10 0x1F 0b101 1_000",
    "١٢٣٤٥٦٧٨٩ 一二三 １２３４５ ⅠⅡⅢ ½¼",
    "2024-11-22T01:31:00+09:00",
    "a1b2c3d4 abc123 123abc v1.2.3",
    "-1 -12 -123 -1234 +5 $5.00 €3,50 ₩1000 100%",
    "!@#$%^&*()_+-=[]{}|;':\",./<>?`~",
    "!!!???...,,,;;;:::---___===+++***///\\\\\\",
    "((()))[[[]]]{{{}}}<<<>>>",
    "a.b.c/d\\e:f;g,h!i?j",
    "https://example.com/path?q=1&r=한글#frag user@example.com",
    "C:\\Users\\name\\file.txt ~/.config/x",
    "def f(x):\n    return x ** 2  # square\n\n\nclass A:\n\tpass\n",
    'for(int i=0;i<10;++i){std::cout<<i<<"\\n";}//end',
    '{"key": [1, 2.5, null, true], "nested": {"a": "b\\u00e9"}}',
    "<html><body class='x'>&nbsp;&lt;</body></html>",
    "SELECT * FROM t WHERE a='b' -- comment\n;",
    "| a | b |\n|---|---|\n| 1 | 2 |\n",
    "$$\\int_0^\\infty e^{-x^2}dx = \\frac{\\sqrt{\\pi}}{2}$$",
    "∀x∈ℝ: ∃y ≤ x² → ¬(x≠y) ∑∏√∞",
    "─│┌┐└┘█▓▒░ ▁▂▃▄▅▆▇█ ▁▁ ▁",
    "\u2581leading \u2581\u2581two a\u2581b",
    "ĠĊĉ Ġthe ÄÃ âĢĵ",
    "CamelCaseIdentifier snake_case_name kebab-case SCREAMING_CASE iPhone McDonald",
    "Supercalifragilisticexpialidocious Donaudampfschifffahrtsgesellschaft",
    "a" * 1000,
    "ab" * 500,
    "가" * 300,
    "的" * 300,
    "😀" * 100,
    " " * 257,
    "\n" * 130,
    "\t" * 65,
    "-" * 200,
    "=" * 77 + "\n" + "#" * 77,
    ("a " * 200).strip(),
    "x" + " " * 40 + "y",
    "x" + " " * 40 + "\n" + " " * 39 + "y",
    " \t \t \r\n \t",
    "end with spaces   \n   ",
    "\ufeffBOM at the start",
    "soft\u00adhyphen non\u2011breaking",
    "İstanbul ıI ß ẞ ŉ ǰ",
    "Å vs Å; Ω vs Ω; K vs K",
    "豈 更 車 (compatibility ideographs)",
    "\u1100\u1161\u11a8\u1112\u1175\u11ab",
    "각\u0301 한\u0308",
    "‼⁉™©®ℹ↔▪◼☀☎☔",
    "𝒜𝓁𝑔ℯ𝒷𝓇𝒶 𝟘𝟙𝟚 𝕳𝖊𝖑𝖑𝖔",
    "ʰʲʷ ˈfəʊn ǃǁǂ ƻ ʔ",
    "ꜛ ꞏ ꟿ ᲀ ᏸ Ა",
)


def _soup(rng: random.Random, alphabet: str, length: int) -> str:
    return "".join(rng.choice(alphabet) for _ in range(length))


def _characters(rng: random.Random, low: int, high: int, length: int) -> str:
    points = (rng.randrange(low, high) for _ in range(length))
    return "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)


def nasty_texts() -> list[str]:
    """About 400 texts of at most 1,000 letters, the empty one first, none with half a surrogate."""
    rng = random.Random(20251122)
    texts = list(_FIXED)
    for special in SPECIALS:
        texts += [special, f"a{special}b", f" {special} ", special[:-1], f"{special}\n{special}"]
    spaces = " \t\n\r\u00a0\u3000\u2009"
    texts += [_soup(rng, spaces, rng.randrange(1, 30)) for _ in range(20)]
    texts += [_soup(rng, spaces + "ab.1가的", rng.randrange(5, 60)) for _ in range(40)]
    texts += [_soup(rng, "0123456789", rng.randrange(1, 40)) for _ in range(10)]
    texts += [_soup(rng, "'sSmMdDtT lLvVrReE", rng.randrange(5, 40)) for _ in range(10)]
    texts += [_soup(rng, "<|im_end|>｜▁", rng.randrange(5, 40)) for _ in range(10)]
    texts += [rng.randbytes(rng.randrange(1, 80)).decode("utf-8", "replace") for _ in range(30)]
    texts += [rng.randbytes(rng.randrange(1, 80)).decode("latin-1") for _ in range(30)]
    for low, high in ((0x20, 0x250), (0x300, 0x370), (0x370, 0x1000), (0x1000, 0x3000),
                      (0x3000, 0xA000), (0xA000, 0x10000), (0x10000, 0x20000), (0x1F300, 0x1FB00),
                      (0x20000, 0x110000)):  # fmt: skip
        texts += [_characters(rng, low, high, rng.randrange(5, 40)) for _ in range(5)]
    texts += ["".join(rng.choice(_FIXED[20:60]) for _ in range(3)) for _ in range(20)]
    return texts
