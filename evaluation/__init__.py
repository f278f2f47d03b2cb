"""
Evaluation of models on benchmarks. One module per command (`python -m evaluation --help`), and what they share:

- `running/`: build and send requests
- `scoring/`: from outputs to figures
- `reporting/`: reports, tables, figures
- `metrics/`: metrics for `evaluate.load`
"""
