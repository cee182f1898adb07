"""Model files: bytes become checked metadata and named byte ranges; nothing in them is run."""
