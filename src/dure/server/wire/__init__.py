"""What several wire formats share: bodies, reasoning settings, content blocks, logprobs."""
