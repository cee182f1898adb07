"""Converts a folder of safetensors to one GGUF file."""
