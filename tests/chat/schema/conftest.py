"""A JSON schema as the grammar of a language of bytes."""

from __future__ import annotations

from typing import Any

import pytest
from fake_model import END, VOCAB_SIZE, ByteTokenizer
from grammar_of import Enforced

from dure.chat.grammar_rules import complete, format_grammar
from dure.chat.schema.check import check
from dure.engine.grammar import GrammarCompiler, cause_of_failure


@pytest.fixture(scope="session")
def enforced() -> Any:
    """A function from a schema to what its grammar allows; it raises what a request would."""
    compiler = GrammarCompiler(ByteTokenizer(), VOCAB_SIZE)  # type: ignore[arg-type]

    def make(schema: Any) -> Enforced:
        check(schema, "The JSON schema", cause_of_failure)
        text = complete(format_grammar("json_schema", schema))
        return Enforced(compiler.compile(text, "The JSON schema"), END)

    return make
