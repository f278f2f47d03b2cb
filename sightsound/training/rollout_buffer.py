"""
The rollout buffer in checkpoints: GRPO samples once for several optimizer steps, and a resumed run needs what it sampled.

With `num_iterations` or `steps_per_generation` above one gradient accumulation, a checkpoint may be written while some of the
sampled micro-batches are still to be trained on. TRL keeps them in memory only and would sample anew after a resume. Each
process writes its own part, as safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sightsound.models.family import ClipFeatures
from sightsound.training.sharing.packing import Batch


PARTS = ("mel", "mask")  # names in the file for the tensors of a clip, as many as its family has


def buffer_file(checkpoint: str | Path, process_index: int) -> Path:
    """The file that holds a process's part."""
    return Path(checkpoint) / f"generation_window-{process_index}.safetensors"


def save_buffer(path: Path, micro_step: int, batches: Sequence[Batch]) -> None:
    """
    Write the sampled micro-batches and the position of training in them.

    Args:
        path (`Path`): See `buffer_file`.
        micro_step (`int`): Forward and backward passes so far.
        batches (`Sequence[Batch]`): Micro-batches; none where all are used up. `audio` holds the `ClipFeatures` of each row;
            each distinct clip is written once.
    """
    tensors: dict[str, torch.Tensor] = {}
    scalars: list[dict[str, Any]] = []
    clips: dict[ClipFeatures, int] = {}
    rows_of_clips: list[list[int]] = []
    for number, batch in enumerate(batches):
        scalars.append({})
        rows_of_clips.append([clips.setdefault(clip, len(clips)) for clip in batch["audio"]])
        for name, value in batch.items():
            if isinstance(value, torch.Tensor):
                tensors[f"batch.{number}.{name}"] = value
            elif name != "audio":
                scalars[number][name] = value
    for clip, number in clips.items():
        for part, tensor in zip(PARTS, clip.tensors, strict=False):
            tensors[f"clip.{number}.{part}"] = tensor
    written = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}  # no shared storage
    state = {"micro_step": micro_step, "scalars": scalars, "clips": rows_of_clips}
    save_file(written, path, metadata={"window": json.dumps(state)})


def load_buffer(path: Path, device: torch.device) -> tuple[int, list[Batch]]:
    """What `save_buffer` wrote; rows that shared a clip's features share them again."""
    with safe_open(path, "pt", device=str(device)) as file:
        state = json.loads(file.metadata()["window"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
    clips = {
        number: ClipFeatures(tuple(tensors[name] for part in PARTS if (name := f"clip.{number}.{part}") in tensors))
        for number in {number for rows in state["clips"] for number in rows}
    }
    batches: list[Batch] = []
    for number, (scalars, rows) in enumerate(zip(state["scalars"], state["clips"], strict=True)):
        prefix = f"batch.{number}."
        batch = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        batches.append({**batch, **scalars, "audio": [clips[clip] for clip in rows]})
    return state["micro_step"], batches
