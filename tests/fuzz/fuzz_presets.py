"""Readers of what a person writes in files: Modelfiles, presets, and the options of a server."""

from __future__ import annotations

import contextlib
import os
import random
import struct
from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

from mutations import TEXTS, damaged_json, damaged_text, json_bytes
from reader import Fault, Reader

from dure import hub
from dure.cli.serve_config import read_config
from dure.errors import InvalidRequestError, ModelFileError, ModelNotFoundError
from dure.hub.modelfile import modelfile_of, read_modelfile

EMPTY_GGUF = b"GGUF" + struct.pack("<IQQ", 3, 0, 0)
MODELFILE = '''# a model
FROM ./base.gguf
PARAMETER temperature 0.3
PARAMETER stop "<|end|>"
PARAMETER num_ctx 2048
SYSTEM """You are
Mario."""
MESSAGE user "Who?"
MESSAGE assistant Me.
TEMPLATE {% for m in messages %}{{ m.content }}{% endfor %}
LICENSE MIT
'''
PIECES = (
    *('"""', '"', "\\", "\n", "FROM a\n", "ADAPTER x\n", "PARAMETER ", "MESSAGE ", "TEMPLATE "),
    *("{{ .Prompt }}", "{{", "\0", "../", "~nobody", "1e999", "nan", "-1", "FROM " + "a" * 600),
    *TEXTS,
)
PRESET = {
    "name": "mario",
    "base": "./base.gguf",
    "system": "Be Mario.",
    "parameters": {"temperature": 0.3, "stop": ["a"]},
    "context": 2048,
    "template": "{{ messages }}",
    "go_template": "{{ .Prompt }}",
    "messages": [{"role": "user", "content": "Who?"}],
    "license": "MIT",
}
CONFIG = """host = "127.0.0.1"
parallel = 3
cors = ["https://a.example"]
[[model]]
name = "one"
alias = ["gpt-4"]
context = 512
keep_alive = -1.5
"""
CONFIG_PIECES = ("[[model]]\n", "[model]\n", "= ", "1e999", "nan", "[[", "]]", "true", '"', *TEXTS)
KNOWN = ("host", "parallel", "cors", "models", "alias", "context", "config")


class Presets(Reader):
    """A Modelfile, and the preset that it becomes; a preset's own file."""

    name = "presets"
    weight = 250

    def draw(self, rng: random.Random) -> Any:
        return damaged_text(rng, MODELFILE, PIECES), json_bytes(rng, damaged_json(rng, PRESET))

    def read(self, drawn: Any) -> bool:
        text, stored = drawn
        (self.folder / "base.gguf").write_bytes(EMPTY_GGUF)
        file, home = self.folder / "Modelfile", self.folder / "home"
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        (home / "presets").mkdir(parents=True, exist_ok=True)
        read = False
        with patch.dict(os.environ, {"DURE_HOME": str(home)}):
            with contextlib.suppress(InvalidRequestError, ModelFileError, ModelNotFoundError):
                made = hub.create(read_modelfile(file).preset("luigi"))
                read = True
                if modelfile_of(made) and hub.preset_of("luigi") is None:
                    raise Fault("a preset that was made is not there")
            (home / "presets" / "mario.json").write_bytes(stored)
            hub.local_models()
            found = hub.preset_of("mario")
            if found is not None:
                modelfile_of(found)
        return read


class ServeConfigs(Reader):
    """The file of `dure serve --config`."""

    name = "serve-config"
    weight = 250

    def draw(self, rng: random.Random) -> Any:
        return damaged_text(rng, CONFIG, CONFIG_PIECES)

    def read(self, drawn: Any) -> bool:
        file = self.folder / "dure.toml"
        file.write_bytes(drawn.encode("utf-8", "surrogatepass"))
        try:
            read_config(file, KNOWN)
        except InvalidRequestError:
            return False
        return True


PRESET_READERS: Mapping[str, type[Reader]] = {each.name: each for each in (Presets, ServeConfigs)}
