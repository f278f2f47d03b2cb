"""Evaluation: benchmarks, batched inference, scores with intervals and controls, reports. See `python -m evaluation --help`."""
