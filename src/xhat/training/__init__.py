"""Training: a loop that yields its steps, checkpoints that resume bit for bit, and what a run folder holds."""
