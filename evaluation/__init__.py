"""Evaluation of models on benchmarks: inference, scores with intervals, controls, reports. See `python -m evaluation --help`."""
