"""What several wire formats share: bodies, thinking, content blocks, log-probabilities."""
