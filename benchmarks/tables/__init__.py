"""The published tables of the field, regenerated: ``python -m benchmarks.tables``."""
