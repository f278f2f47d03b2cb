"""
`python -m evaluation run` in detail.

- `arguments.py`: the flags, the checks of the flags against each other, the settings that a rerun must repeat (`stage.py`
  compares them). `sightsound/engines/transformers.py` checks at the first batch that the model takes the modality.
- `table_rows.py`: a row of the paper's tables in place of the flags
- `controls.py`: the control conditions
- `requests.py`: the request for a question: prompt, clip, control
"""
