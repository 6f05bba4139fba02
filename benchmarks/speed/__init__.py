"""How fast xhat trains, beside the libraries that its users would choose between: ``python -m benchmarks.speed``."""
