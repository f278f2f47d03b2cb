"""
Checkpoints inside a generation window: GRPO samples once for several optimizer steps, and a resumed run needs what it sampled.

With `num_iterations` or `steps_per_generation` above one gradient accumulation, a checkpoint may fall where half of a batch is
still to be trained on. TRL keeps that batch in memory only and starts the next window wherever it resumes. Each process
writes its own part, as safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sightsound.training.sharing.packing import Batch


def window_file(checkpoint: str | Path, process_index: int) -> Path:
    """Where a process keeps its part of the window."""
    return Path(checkpoint) / f"generation_window-{process_index}.safetensors"


def save_window(path: Path, micro_step: int, batches: Sequence[Batch]) -> None:
    """
    Write what was generated and where in its use training is.

    Args:
        path (`Path`): See `window_file`.
        micro_step (`int`): Forward and backward passes so far.
        batches (`Sequence[Batch]`): Micro-batches of the window; none where all are used up. `audio` holds per row a reference
            to its clip's features, and each clip is written once.
    """
    tensors: dict[str, torch.Tensor] = {}
    scalars: list[dict[str, Any]] = []
    clips: dict[int, int] = {}
    rows_of_clips: list[list[int]] = []
    for number, batch in enumerate(batches):
        scalars.append({})
        rows = []
        for mel, mask in batch["audio"]:
            clip = clips.setdefault(id(mel), len(clips))
            tensors[f"clip.{clip}.mel"], tensors[f"clip.{clip}.mask"] = mel, mask
            rows.append(clip)
        rows_of_clips.append(rows)
        for name, value in batch.items():
            if isinstance(value, torch.Tensor):
                tensors[f"batch.{number}.{name}"] = value
            elif name != "audio":
                scalars[number][name] = value
    written = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}  # no shared storage
    state = {"micro_step": micro_step, "scalars": scalars, "clips": rows_of_clips}
    save_file(written, path, metadata={"window": json.dumps(state)})


def load_window(path: Path, device: torch.device) -> tuple[int, list[Batch]]:
    """What `save_window` wrote: rows that shared a clip's features share them again."""
    with safe_open(path, "pt", device=str(device)) as file:
        state = json.loads(file.metadata()["window"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
    batches: list[Batch] = []
    for number, (scalars, rows) in enumerate(zip(state["scalars"], state["clips"], strict=True)):
        prefix = f"batch.{number}."
        batch = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        audio = [(tensors[f"clip.{clip}.mel"], tensors[f"clip.{clip}.mask"]) for clip in rows]
        batches.append({**batch, **scalars, "audio": audio})
    return state["micro_step"], batches
