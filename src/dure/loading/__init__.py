"""Load a model by name, plan its memory, and describe it without loading."""
