"""Engines: what answers the requests of a stage. `make_engine` chooses one; one file each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sightsound.engines.base import Engine, Sampling
from sightsound.engines.request_fields import RequestOptions


def make_engine(
    model: str,
    base_url: str | Sequence[str] | None,
    batch_size: int,
    concurrency: int,
    sampling: Sampling,
    timeout_s: float | None = None,
    prime: bool = False,
    batches: Path | None = None,
    options: RequestOptions = RequestOptions(),  # noqa: B008 - frozen
    revision: str | None = None,
) -> Engine:
    """
    `OpenAIEngine` when one `base_url` or several are given, else `TransformersEngine`; with `batches`, the file that records
    them, `OpenAIBatchEngine` at the first `base_url`. `options` are what its requests hold otherwise, `revision` is of a model
    in this process: `loading.load_generator`.
    """
    if not base_url:
        from sightsound.engines.transformers import TransformersEngine

        return TransformersEngine.load(model, batch_size, sampling, revision)
    from sightsound.engines.openai import TIMEOUT_S, OpenAIEngine
    from sightsound.engines.openai_batch import OpenAIBatchEngine

    urls = [base_url] if isinstance(base_url, str) else base_url
    if batches is not None:
        return OpenAIBatchEngine(model, urls[0], batches, timeout_s or TIMEOUT_S, options=options)
    return OpenAIEngine(model, urls, concurrency, timeout_s or TIMEOUT_S, prime, options)
