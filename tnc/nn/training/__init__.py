"""Training compressed models: the loop, its objective, resuming, several processes."""
