"""The layers that models are made of: attention, MLPs, norms, RoPE, and the decoder of them."""
