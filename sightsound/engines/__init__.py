"""
Engines: what answers the requests of a stage.

To add one, write `engines/NAME.py` with an engine (`base.Engine` or `base.StreamingEngine`) and a function
`make(flags: EngineFlags)` that returns it, and add its line to `ENGINES`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from sightsound.engines.base import Engine, EngineFlags


# A module, and which commands it serves. The first line that fits is taken.
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
