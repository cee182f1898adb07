"""From a name to a model in memory, and what can be said of it before."""
