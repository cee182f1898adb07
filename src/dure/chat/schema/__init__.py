"""JSON schemas of formats and tools: what they mean, what can be enforced, and what is wrong."""
