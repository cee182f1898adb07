"""`dure serve`: models behind HTTP, for existing OpenAI, Anthropic and Ollama clients."""
