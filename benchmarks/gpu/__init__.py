"""What holds and how fast it is on one GPU: ``python -m benchmarks.gpu`` writes ``gpu.json`` and ``gpu.md``."""
