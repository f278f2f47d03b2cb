"""
`python -m evaluation run` in detail.

- `arguments.py`: the flags, the checks of the flags against each other, the settings that a rerun must repeat (`stage.py`
  compares them). `sightsound/engines/transformers.py` checks at the first batch that the model takes the modality.
- `controls.py`: the control conditions
- `requests.py`: the request for a question: prompt, clip, control
"""
