"""The audio tower runs once per distinct clip of a batch, not once per row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from sightsound.models.family import ClipFeatures


class SharedTower:
    """
    Makes an audio tower run once per distinct clip inside `sharing`; outside of it, nothing changes.

    The model passes the tower one row of features per sequence. One hook keeps the first row of each clip, a second one copies
    the tower's output to all sequences of the clip.

    Args:
        tower (`torch.nn.Module`): Its hooks stay for good.
    """

    def __init__(self, tower: torch.nn.Module):
        tower.register_forward_pre_hook(self._reduce, with_kwargs=True)
        tower.register_forward_hook(self._expand)
        self._first: torch.Tensor | None = None
        self._clip: torch.Tensor | None = None
        self.rows_encoded = 0

    @contextmanager
    def sharing(self, clips: Sequence[ClipFeatures]) -> Iterator[None]:
        """For the next forward, say which clip each row has; rows with the same object share it."""
        positions: dict[ClipFeatures, int] = {}
        clip = [positions.setdefault(features, len(positions)) for features in clips]
        device = clips[0].tensors[0].device
        self._first = torch.tensor([clip.index(position) for position in positions.values()], device=device)
        self._clip = torch.tensor(clip, device=device)
        try:
            yield
        finally:
            self._first = self._clip = None

    def _reduce(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        features = args[0] if args else kwargs.pop("input_features")
        if self._first is not None:
            # Masks too, whatever a family calls them: every tensor with a row per sequence.
            rows = {name for name, value in kwargs.items() if isinstance(value, torch.Tensor) and len(value) == len(features)}
            kwargs = {name: value[self._first] if name in rows else value for name, value in kwargs.items()}
            features = features[self._first]
        self.rows_encoded += len(features)
        return (features, *args[1:]), kwargs

    def _expand(self, _: Any, __: Any, output: Any) -> Any:
        if self._clip is not None:
            output.last_hidden_state = output.last_hidden_state[self._clip]
        return output
