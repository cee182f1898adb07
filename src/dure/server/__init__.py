"""dure serve: a model behind HTTP, for the clients that people already have."""
