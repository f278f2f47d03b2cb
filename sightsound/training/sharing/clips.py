"""The audio tower runs once per distinct clip of a batch, not once per row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from sightsound.models.family import ClipFeatures, StudentFamily


class SharedTower:
    """
    Makes an audio tower run once per distinct clip inside `sharing`; outside of it, nothing changes.

    The model passes the tower the features of each sequence's clip. One hook keeps one of each distinct clip, a second one
    repeats the tower's output for all sequences of the clip.

    Args:
        tower (`torch.nn.Module`): Its hooks stay for good.
        family (`StudentFamily`): Of the model: how its tower takes several clips.
    """

    def __init__(self, tower: torch.nn.Module, family: StudentFamily):
        tower.register_forward_pre_hook(self._reduce, with_kwargs=True)
        tower.register_forward_hook(self._expand)
        self._family = family
        self._clips: list[ClipFeatures] = []  # of the sequences of the next forward; none outside of `sharing`
        self._distinct: list[ClipFeatures] = []
        self.rows_encoded = 0

    @contextmanager
    def sharing(self, clips: Sequence[ClipFeatures]) -> Iterator[None]:
        """For the next forward, say which clip each sequence has; sequences with the same object share it."""
        self._clips, self._distinct = list(clips), list(dict.fromkeys(clips))
        try:
            yield
        finally:
            self._clips, self._distinct = [], []

    def _reduce(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        inputs = {"input_features": args[0], **kwargs} if args else kwargs
        if self._clips:
            first = [self._clips.index(clip) for clip in self._distinct]
            inputs = self._family.select_clips(inputs, self._clips, first)
        self.rows_encoded += self._family.count_rows(inputs)
        return (), inputs

    def _expand(self, _: Any, __: Any, output: Any) -> Any:
        if self._clips:
            order = [self._distinct.index(clip) for clip in self._clips]
            output.last_hidden_state = self._family.repeat_clips(output.last_hidden_state, self._distinct, order)
        return output
