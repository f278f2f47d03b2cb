"""
The Hugging Face Hub: cards, publishing, inputs.

- `cards.py`: write a card: template, front matter, tables, how the run was started
- `templates/`: the texts of the cards, linked as `model_cards/`
- `publish.py`: `--push_to_hub`; publish a dataset, a model, a collection
- `pull_request.py`: bring a repository to one build: pull request, read back, merge, tag
- `retries.py`: try again when the Hub fails, and say in one line why it failed
- `inputs.py`: look up the datasets that a command names, and pin their commits
- `files.py`: the files of a large dataset, one at a time on this disk
"""
