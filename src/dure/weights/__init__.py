"""Parameters: named, found in a checkpoint, converted where needed, and packed."""
