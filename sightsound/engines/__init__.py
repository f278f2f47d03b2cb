"""
Engines: what answers the requests of a stage.

- `base.py`: request, result, and what an engine has to do
- `runner.py`: make the requests of a stage with any engine, journal them, continue after a kill
- `transformers.py`: a model in this process
- `openai.py`: OpenAI-compatible servers
- `openai_batch.py`: OpenAI's Batch API
- `openai_account.py`: the batches of an account, so that none is paid twice
- `openai_models.py`: look the model up at its servers, choose a replica
- `openai_protocol.py`: requests in OpenAI's form, and what HTTP errors mean
- `openai_replies.py`: read a reply
- `request_fields.py`: the flags that change requests
- `sampling.py`: every sampling field of a request, and what is recorded of it
- `checker.py`: get the checker's verdicts
- `claim_rewriting.py`: have traces with false claims written again, and verify them
- `blind_answers.py`: have models answer questions without the clip, to find those that can be guessed
- `diagnosis.py`: stop or warn when the first answers show that a run is worthless
- `cost.py`: `--dry_run`: requests, tokens and price

To add one, write `engines/NAME.py` with an engine (`base.Engine` or `base.StreamingEngine`) and a function
`make(flags: EngineFlags)` that returns it, and put its line above the others in `ENGINES`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from sightsound.engines.base import Engine, EngineFlags


# A module, and the flags of the commands that it serves. The first condition that holds is used.
ENGINES: list[tuple[str, Callable[[EngineFlags], bool]]] = [
    ("sightsound.engines.openai_batch", lambda flags: flags.batches is not None),
    ("sightsound.engines.openai", lambda flags: bool(flags.base_urls)),
    ("sightsound.engines.transformers", lambda flags: not flags.base_urls),
]


def make_engine(flags: EngineFlags) -> Engine:
    """The engine that serves a command with these flags."""
    module = next(module for module, serves in ENGINES if serves(flags))
    engine: Engine = importlib.import_module(module).make(flags)
    return engine
