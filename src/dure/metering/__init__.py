"""What answers cost: processor seconds, joules and money; who used what, and how much they may."""
