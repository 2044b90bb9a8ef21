"""Training checkpoints: written whole, and resumed bit for bit."""
