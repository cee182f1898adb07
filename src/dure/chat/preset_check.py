"""Can a preset do what it says? Its parameters are in range, its template writes a prompt."""

from __future__ import annotations

from dure.chat.template import ChatTemplate
from dure.engine.params import SamplingParams
from dure.errors import InvalidRequestError, TemplateError
from dure.hub.presets import Preset

_SAID = "Hello"


def check_preset(preset: Preset) -> None:
    """Raise InvalidRequestError for parameters out of range, or a template without a prompt."""
    SamplingParams(**preset.settings.sampling)
    if not preset.settings.template:
        return
    template = ChatTemplate(preset.settings.template, bos_token="", eos_token="")
    try:
        prompt = template.render([{"role": "user", "content": _SAID}])  # in a sandbox
    except TemplateError as error:
        raise InvalidRequestError(
            f"The template writes no prompt: {error.message}", hint=error.hint
        ) from None
    finally:
        template.close()
    if _SAID not in prompt:
        raise InvalidRequestError(
            "The template leaves out what the user says.",
            hint="{% for message in messages %}… {{ message.content }} …{% endfor %}",
        )
