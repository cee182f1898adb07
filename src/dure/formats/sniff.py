"""Says what a file that is not a model looks like, from its first bytes."""

from __future__ import annotations

from dure.formats.source import SourceFile

_FIRST_BYTES = (
    (b"GGUF", "a GGUF file"),
    (b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull` to get the file itself"),
    (b"PK\x03\x04", "a zip archive, perhaps a PyTorch checkpoint, which can run code when loaded"),
    (b"\x80\x02", "a Python pickle, perhaps a PyTorch checkpoint, which can run code when loaded"),
    (b"\x80\x03", "a Python pickle, which can run code when loaded"),
    (b"\x80\x04", "a Python pickle, which can run code when loaded"),
    (b"\x80\x05", "a Python pickle, which can run code when loaded"),
    (b"lmgg", "a GGML file, the format before GGUF: convert the original model again"),
    (b"fmgg", "a GGMF file, a format before GGUF: convert the original model again"),
    (b"tjgg", "a GGJT file, a format before GGUF: convert the original model again"),
    (b"algg", "a GGLA adapter, from before GGUF"),
    (b"\x89HDF", "an HDF5 (Keras) file"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"\x7fELF", "a program"),
    (b"\x08", "a protobuf, perhaps an ONNX model"),
)
_TEXT_BYTES = bytes([*b"\t\n\r\f", *range(0x20, 0x7F)])


def describe(source: SourceFile) -> str:
    """Describe the file in a phrase, such as "it looks like an HTML page"."""
    if source.size_bytes == 0:
        return "it is empty"
    first = source.read(0, min(512, source.size_bytes)).tobytes()
    for magic, kind in _FIRST_BYTES:
        if first.startswith(magic):
            return f"it looks like {kind}"
    if not first.strip(b"\0"):
        return "it begins with zeros, as a download that was cut off may"
    text = first.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!--")):
        return "it looks like an HTML page, perhaps an error or login page saved as a model"
    if first[8:9] == b"{" and int.from_bytes(first[:8], "little") < source.size_bytes:
        return "it looks like a safetensors file"
    if text.startswith(b"{"):
        return "it looks like a JSON text, perhaps an error message saved as a model"
    if not first.translate(None, _TEXT_BYTES):
        return "it looks like a text file"
    return f"it begins with the bytes {first[:8].hex(' ')}"
