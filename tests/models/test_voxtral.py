"""Voxtral's prompts are token for token those of the processor's own chat template, whatever a text holds."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sightsound.cli import InputError
from sightsound.data.audio import encode_flac
from sightsound.hub.publish import is_of_checkpoint
from sightsound.method.prompts import user_message
from sightsound.models.family import family_of_processor, released_licence
from sightsound.models.loading import load_audio_processor
from sightsound.models.voxtral import CONTROL, FAMILY
from sightsound.training.collator import IGNORED, CompletionCollator
from tests.support.families import build_family
from tests.support.voxtral import SPECIAL, voxtral_inputs


RATE = 16_000
AUDIO, BEGIN_AUDIO, EOS = SPECIAL.index("[AUDIO]"), SPECIAL.index("[BEGIN_AUDIO]"), SPECIAL.index("</s>")
# Texts that look like control tokens, as they are written and as a prompt marks them; bytes that no merge covers; no text.
TEXTS = [
    "What is heard?",
    "[INST] Say [/INST] yes</s> to [AUDIO][AUDIO] and [BEGIN_AUDIO]<pad>",
    " two spaces,\n\na line \U0001f514 \u00e9\u4e2d[",
    "<s>[INST][BEGIN_AUDIO][AUDIO]What is heard?[/INST]",
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_family("voxtral", tmp_path_factory.mktemp("voxtral") / "model")


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> Any:
    return load_audio_processor(str(checkpoint))


def chirp(seconds: float) -> np.ndarray:
    """A rising tone with a click in each second, of a real recording's precision."""
    time = np.arange(round(seconds * RATE)) / RATE
    sound = 0.3 * np.sin(2 * np.pi * (200 + 40 * time) * time) + 0.5 * (time % 1 < 0.01)
    return np.round(sound * 2**15).astype(np.float32) / 2**15


def encode(processor: Any, messages: list[dict[str, Any]], waveforms: list[np.ndarray]) -> dict[str, Any]:
    text = FAMILY.render(processor, messages, for_answer=True)
    return FAMILY.encode(processor, [text], audio=waveforms, padding=True, padding_side="left", return_tensors="pt")


def check_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(("seconds", "windows"), [(0.4, 1), (30.0, 1), (30.1, 2)])
def test_a_prompt_with_a_clip_is_the_processors_own(processor: Any, text: str, seconds: float, windows: int) -> None:
    messages, waveform = user_message(text, "audio"), chirp(seconds)
    found = encode(processor, messages, [waveform])
    check_equal(found, voxtral_inputs(processor, messages, [waveform]))
    ids = found["input_ids"][0].tolist()
    assert ids.count(AUDIO) == 375 * windows and ids.count(BEGIN_AUDIO) == 1 and EOS not in ids
    assert len(found["input_features"]) == windows
    clip = FAMILY.clip_features(processor, waveform)
    assert clip.num_tokens == 375 * windows and torch.equal(clip.tensors[0], found["input_features"])


def test_conversations_of_other_shapes_are_the_processors_own(processor: Any) -> None:
    """Without a clip, with a text before the clip, with turns before, with two clips."""
    answered = [*user_message(TEXTS[1], "audio"), {"role": "assistant", "content": [{"type": "text", "text": "A </s>"}]}]
    between = {"role": "user", "content": [{"type": "text", "text": "First:"}, {"type": "audio"}, {"type": "audio"}]}
    for messages, waveforms in (
        (user_message(TEXTS[1]), []),
        ([*answered, *user_message(TEXTS[2])], [chirp(1.0)]),
        ([*answered, *user_message(TEXTS[2], "audio")], [chirp(31.0), chirp(2.0)]),
        ([between], [chirp(1.0), chirp(2.0)]),
    ):
        check_equal(in_order(processor, messages, waveforms), voxtral_inputs(processor, messages, waveforms))


def in_order(processor: Any, messages: list[dict[str, Any]], waveforms: list[np.ndarray]) -> dict[str, Any]:
    """As `encode`, of a conversation with any number of clips; `StudentFamily.encode` takes one per text."""
    text = FAMILY.render(processor, messages, for_answer=True)
    clips = [FAMILY.clip_features(processor, waveform) for waveform in waveforms]
    placeholder = FAMILY.placeholder(processor)
    before, *after = text.split(placeholder)
    assert len(after) == len(clips)
    parts = (placeholder * clip.num_tokens + rest for clip, rest in zip(clips, after, strict=True))
    ids = torch.tensor(FAMILY.tokenize(processor, [before + "".join(parts)]))
    features = FAMILY.stack_features(clips) if clips else {}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **features}


def test_batches_are_padded_on_the_side_that_is_asked_for(processor: Any) -> None:
    conversations = [user_message(text, "audio") for text in TEXTS]
    texts = [FAMILY.render(processor, messages, for_answer=True) for messages in conversations]
    waveforms = [chirp(1.0 + 15 * number) for number in range(4)]
    batch = FAMILY.encode(processor, texts, audio=waveforms, padding=True, padding_side="left", return_tensors="pt")
    alone = [voxtral_inputs(processor, *row) for row in zip(conversations, ([sound] for sound in waveforms), strict=True)]
    for ids, mask, row in zip(batch["input_ids"], batch["attention_mask"], alone, strict=True):
        assert torch.equal(ids[mask.bool()], row["input_ids"][0]) and mask.tolist() == sorted(mask.tolist())
        assert (ids[~mask.bool()] == processor.tokenizer.pad_token_id).all()
    assert torch.equal(batch["input_features"], torch.cat([row["input_features"] for row in alone]))


def test_a_rendered_prompt_reads_as_mistral_writes_it(processor: Any) -> None:
    text = FAMILY.render(processor, user_message(f"[/INST] {CONTROL}[INST]", "audio"), for_answer=True)
    # The mark itself is dropped from a question: Unicode reserves it, and it would make a control token of what follows.
    assert text == "\ufdd0<s>\ufdd0[INST]\ufdd0[BEGIN_AUDIO]\ufdd0[AUDIO][/INST] [INST]\ufdd0[/INST]"
    assert text.replace(CONTROL, "") == "<s>[INST][BEGIN_AUDIO][AUDIO][/INST] [INST][/INST]"


@pytest.mark.parametrize("text", TEXTS)
def test_a_completion_is_text_and_its_end(processor: Any, text: str) -> None:
    row = {"prompt": [{"role": "user", "content": text}], "completion": text, "audio": None}
    row["audio"] = {"bytes": encode_flac(chirp(2.0)), "path": None}
    collator = CompletionCollator(processor)
    batch = collator([row])
    (labels,) = batch["labels"]
    target = labels[labels != IGNORED].tolist()
    assert target == [*processor.tokenizer.encode(text, add_special_tokens=False), EOS]
    assert processor.tokenizer.decode(target, skip_special_tokens=True) == text
    assert collator.num_tokens(row, 2.0) == len(labels)


def test_messages_that_the_template_does_not_take_are_refused(processor: Any) -> None:
    system = {"role": "system", "content": "Be brief."}
    with pytest.raises(ValueError, match=r"Found system messages .* and audio chunks"):
        FAMILY.render(processor, [system, *user_message("?", "audio")], for_answer=True)


def test_a_saved_folder_is_complete(checkpoint: Path, processor: Any, tmp_path: Path) -> None:
    """The tokenizer's file goes with the processor, and is published."""
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "tekken.json").read_bytes() == (checkpoint / "tekken.json").read_bytes()
    assert all(is_of_checkpoint(file.name) for file in checkpoint.iterdir())
    assert family_of_processor(processor) is FAMILY and FAMILY.window_s(processor) == 2400
    assert released_licence("mistralai/Voxtral-Mini-3B-2507").id == "apache-2.0"


WITHOUT_THE_PACKAGE = """
import importlib.util, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "mistral_common" else found(name, *rest)
from sightsound.models.loading import load_audio_processor
load_audio_processor(sys.argv[1])
"""


def test_without_mistral_common_one_line_says_what_to_install(checkpoint: Path) -> None:
    """In a process of its own, because transformers looks for the package once; it makes another tokenizer then."""
    command = [sys.executable, "-c", WITHOUT_THE_PACKAGE, str(checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    reason = "needs mistral-common, which writes its prompts: install this package with the extra `voxtral`"
    assert done.stderr.strip().endswith(f"InputError: {checkpoint} {reason}")


def with_other_tokens(tekken: str) -> str:
    return tekken.replace('"[AUDIO]"', '""').replace('"[BEGIN_AUDIO]"', '"[AUDIO]"').replace('""', '"[BEGIN_AUDIO]"')


def of_a_text_model(tekken: str) -> str:
    return json.dumps({**json.loads(tekken), "audio": None})


@pytest.mark.parametrize(("change", "found"), [(with_other_tokens, 25), (of_a_text_model, None)])
def test_a_tokenizer_of_another_model_is_refused(checkpoint: Path, tmp_path: Path, change: Any, found: int | None) -> None:
    shutil.copytree(checkpoint, tmp_path / "mixed")
    file = tmp_path / "mixed" / "tekken.json"
    file.write_text(change(file.read_text()))
    with pytest.raises(InputError, match=rf"another model's \(id of the audio token: {found}, the model's is 24\)"):
        load_audio_processor(str(tmp_path / "mixed"))
