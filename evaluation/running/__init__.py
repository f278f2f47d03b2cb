"""
`python -m evaluation run` in detail.

- `arguments.py`: the flags, the checks that refuse a run, the settings that a rerun must repeat
- `controls.py`: the control conditions
- `requests.py`: the request for a question: prompt, clip, control
"""
