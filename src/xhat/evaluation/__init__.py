"""Evaluation: bounds, evidence and diagnostics, each with its standard error."""
