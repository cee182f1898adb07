"""Which chat template stands in for one of Ollama's, which is a Go program and is never run.

A GGUF file's own template comes first. Where a file has none, the Go template's marks tell which
family's form it writes, and ours of the same form takes its place.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class _Form:
    """How a family writes a chat: all `marks` are in its Go templates."""

    name: str
    marks: tuple[str, ...]
    template: str


def _turns(before: str, role: str, after: str, *, assistant: str = "assistant") -> str:
    """Write a template of turns alike: `before` role `after_role` content `after`."""
    named = f"'{assistant}' if message['role'] == 'assistant' else message['role']"
    return (
        "{{ bos_token }}{% for message in messages %}"
        f"{{{{ '{before}' + ({named}) + '{role}' + message['content'] + '{after}' }}}}"
        "{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ '{before}{assistant}{role}' }}}}{{% endif %}}"
    )


_CHATML = _turns("<|im_start|>", "\\n", "<|im_end|>\\n").replace("{{ bos_token }}", "", 1)
_LLAMA3 = _turns("<|start_header_id|>", "<|end_header_id|>\\n\\n", "<|eot_id|>")
_PHI = _turns("<|", "|>\\n", "<|end|>\\n").replace("{{ bos_token }}", "", 1)
# A system message opens the user's first turn: neither family has a turn of its own for it.
_SYSTEM_FIRST = (
    "{{ bos_token }}{% set said = namespace(system='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}"
    "{% set said.system = message['content'] + '\\n\\n' %}"
    "{% elif message['role'] == 'user' %}"
    "{{ 'BEFORE' + said.system + message['content'] + 'AFTER' }}{% set said.system = '' %}"
    "{% else %}{{ 'ANSWER' + message['content'] + 'END' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'OPEN' }}{% endif %}"
)


def _system_first(before: str, after: str, answer: str, end: str, opened: str) -> str:
    words = {"BEFORE": before, "AFTER": after, "ANSWER": answer, "END": end, "OPEN": opened}
    text = _SYSTEM_FIRST
    for word, value in words.items():
        text = text.replace(f"'{word}'", f"'{value}'")
    return text


_GEMMA = _system_first(
    "<start_of_turn>user\\n",
    "<end_of_turn>\\n",
    "<start_of_turn>model\\n",
    "<end_of_turn>\\n",
    "<start_of_turn>model\\n",
)
_MISTRAL = _system_first("[INST] ", " [/INST]", " ", "</s>", "")
_DEEPSEEK = _system_first(
    "<｜User｜>", "", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<｜Assistant｜>"
)

_FORMS = (
    _Form("ChatML", ("<|im_start|>", "<|im_end|>"), _CHATML),
    _Form("Llama 3", ("<|start_header_id|>", "<|eot_id|>"), _LLAMA3),
    _Form("Gemma", ("<start_of_turn>", "<end_of_turn>"), _GEMMA),
    _Form("DeepSeek", ("<｜User｜>", "<｜Assistant｜>"), _DEEPSEEK),
    _Form("Phi", ("<|user|>", "<|end|>", "<|assistant|>"), _PHI),
    _Form("Mistral", ("[INST]", "[/INST]"), _MISTRAL),
)


def template_for(go_template: str) -> tuple[str, str]:
    """Return the template of ours for a file that has none, and what to say of it.

    Both are empty for a model without a template; the template alone for one of unknown form.
    """
    if not go_template.strip():
        return "", ""
    form = next((f for f in _FORMS if all(mark in go_template for mark in f.marks)), None)
    if form is None:
        return "", "Ollama's template is of a form that dure does not know, and is not used"
    return form.template, f"Ollama's template is not run: dure writes {form.name}'s form itself"
