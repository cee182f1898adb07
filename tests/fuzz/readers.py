"""All readers by name."""

from __future__ import annotations

from collections.abc import Mapping

from fuzz_callers import CALLER_READERS
from fuzz_files import FILE_READERS
from fuzz_gguf import GGUF_READERS
from fuzz_hub import HUB_READERS
from fuzz_packed import PACKED_READERS
from fuzz_pooling import POOLING_READERS
from fuzz_presets import PRESET_READERS
from fuzz_server import SERVER_READERS
from fuzz_texts import TEXT_READERS
from reader import Reader

READERS: Mapping[str, type[Reader]] = {
    **GGUF_READERS,
    **FILE_READERS,
    **PACKED_READERS,
    **POOLING_READERS,
    **TEXT_READERS,
    **HUB_READERS,
    **SERVER_READERS,
    **CALLER_READERS,
    **PRESET_READERS,
}
