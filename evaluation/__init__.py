"""Evaluation of models on benchmarks: inference, scores, controls, reports. See `python -m evaluation --help`."""
