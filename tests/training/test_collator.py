"""A batch: the completion and its end are the only targets, and each row has the features of its own clip."""

import numpy as np
import pytest

from sightsound.data.audio import decode_audio, encode_flac
from sightsound.data.frames import load_frames
from sightsound.models.family import family_of_processor
from sightsound.training.collator import IGNORED, CompletionCollator


COMPLETION = "<think>I hear a dog.</think><answer>dog</answer>"


@pytest.fixture(scope="module")
def processor(student_checkpoint):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(student_checkpoint)


@pytest.fixture(scope="module")
def collator(processor) -> CompletionCollator:
    return CompletionCollator(processor)


@pytest.fixture(scope="module")
def rows(questions) -> list[dict]:
    """Two rows with audio and, between them, one without, of different lengths."""
    texts = ["What is heard?", "Which of these is heard first in the audio?\nA. dog\nB. bell", "Say it in one word, please."]
    completions = [COMPLETION, "<answer>bell</answer>", COMPLETION + " siren"]
    sounds = [questions[0]["audio"], None, questions[1]["audio"]]
    triples = zip(texts, completions, sounds, strict=True)
    return [{"prompt": [{"role": "user", "content": text}], "completion": c, "audio": sound} for text, c, sound in triples]


def prompt_of(row: dict, num_audio_tokens: int = 25) -> str:
    """The template of Qwen2-Audio, written out by hand."""
    sound = f"Audio 1: <|audio_bos|>{'<|AUDIO|>' * num_audio_tokens}<|audio_eos|>\n" if row["audio"] else ""
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    return f"{system}<|im_start|>user\n{sound}{row['prompt'][0]['content']}<|im_end|>\n<|im_start|>assistant\n"


def test_only_the_completion_and_its_end_are_targets(collator, processor, rows):
    batch = collator(rows)
    decode = processor.tokenizer.decode
    for row, ids, labels, mask in zip(rows, batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        assert decode(labels[labels != IGNORED]) == row["completion"] + "<|im_end|>", "no newline: it is never sampled"
        assert decode(ids[mask == 1]) == prompt_of(row) + row["completion"] + "<|im_end|>"
        assert (ids[labels != IGNORED] == labels[labels != IGNORED]).all(), "a target stands where its token stands"
        assert (labels[mask == 0] == IGNORED).all()
        assert (ids[mask == 0] == processor.tokenizer.pad_token_id).all()
        length = int(mask.sum())
        assert mask.tolist() == [1] * length + [0] * (len(mask) - length), "padded on the right"
    assert len({int(mask.sum()) for mask in batch["attention_mask"]}) == 3, "rows of one length would not test the padding"


@pytest.mark.parametrize("chosen", [[0], [1], [0, 2], [1, 1], [0, 1, 2], [1, 0]])
def test_batches_with_audio_without_and_mixed(collator, processor, rows, chosen):
    batch = collator([rows[i] for i in chosen])
    num_sounds = sum(rows[i]["audio"] is not None for i in chosen)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    assert set(batch) - {"input_ids", "labels", "attention_mask"} == (
        {"input_features", "feature_attention_mask"} if num_sounds else set()
    )
    if num_sounds:
        assert batch["input_features"].shape == (num_sounds, 128, 100)
    num_tokens = (batch["input_ids"] == processor.audio_token_id).sum(dim=1).tolist()
    assert num_tokens == [25 if rows[i]["audio"] is not None else 0 for i in chosen]


def test_features_are_those_of_the_rows_own_sounds_in_order(collator, rows):
    first, second = (collator([rows[i]])["input_features"][0] for i in (0, 2))
    assert not (first == second).all(), "another sound has to give other features"
    together = collator(rows)["input_features"]
    assert (together[0] == first).all()
    assert (together[1] == second).all()


def test_a_row_that_is_too_long_raises_and_is_never_cut(collator, processor, rows):
    durations = [None if row.get("audio") is None else decode_audio(row["audio"]).duration_s for row in rows]
    longest = max(collator.num_tokens(row, duration_s) for row, duration_s in zip(rows, durations, strict=True))
    assert longest == collator(rows)["input_ids"].shape[1]
    assert CompletionCollator(processor, max_length=longest)(rows)["input_ids"].shape[1] == longest
    with pytest.raises(ValueError, match=f"a row of {longest} tokens exceeds max_length={longest - 1}"):
        CompletionCollator(processor, max_length=longest - 1)(rows)


def test_audio_beyond_the_models_window_is_cut(collator, processor, rows):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 48_000).astype(np.float32)
    cells = [{"bytes": encode_flac(sound), "path": None} for sound in (noise, noise[:32_000], noise[:16_000])]
    long, window, short = (collator([{**rows[0], "audio": cell}]) for cell in cells)
    assert collator.window_s == 2.0
    assert (long["input_features"] == window["input_features"]).all()
    assert (long["input_ids"] == window["input_ids"]).all()
    assert processor.tokenizer.decode(short["input_ids"][0]).count("<|AUDIO|>") == 12, "half the sound, half the tokens"


def test_the_end_of_a_turn_is_what_the_template_writes(processor, teacher_checkpoint):
    from transformers import AutoProcessor

    for each in (processor, AutoProcessor.from_pretrained(teacher_checkpoint)):
        assert family_of_processor(each).end_of_turn(each) == "<|im_end|>"


def by_hand(model, processor, rows) -> float:
    """Mean cross entropy over the completions, one unpadded row at a time, from text that is written out by hand."""
    import torch

    losses = []
    for row in rows:
        ids = processor.tokenizer(prompt_of(row) + row["completion"] + "<|im_end|>", return_tensors="pt")["input_ids"]
        media = {}
        if row["audio"] is not None:
            sound = decode_audio(row["audio"]).waveform
            extract = processor.feature_extractor
            features = extract(sound, sampling_rate=16_000, return_attention_mask=True, return_tensors="pt")
            media = {"input_features": features["input_features"], "feature_attention_mask": features["attention_mask"]}
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **media).logits[0]
        num_targets = len(processor.tokenizer(row["completion"] + "<|im_end|>")["input_ids"])
        for position in range(ids.shape[1] - num_targets, ids.shape[1]):
            losses.append(-logits[position - 1].log_softmax(-1)[ids[0, position]].item())
    return sum(losses) / len(losses)


def test_the_loss_of_a_batch_is_the_cross_entropy_over_its_completions(collator, processor, rows, student_checkpoint):
    import torch
    from transformers import Qwen2AudioForConditionalGeneration

    model = Qwen2AudioForConditionalGeneration.from_pretrained(student_checkpoint).eval()
    with torch.inference_mode():
        expected = by_hand(model, processor, rows)
        assert model(**collator(rows)).loss.item() == pytest.approx(expected, abs=1e-5)
        swapped = [{**rows[0], "audio": rows[2]["audio"]}, rows[1], {**rows[2], "audio": rows[0]["audio"]}]
        assert abs(model(**collator(swapped)).loss.item() - expected) > 1e-4, "another sound gives another loss"


def test_video_rows_train_the_teacher_on_their_completions(teacher_checkpoint, tiny_world):
    import torch
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    processor = AutoProcessor.from_pretrained(teacher_checkpoint)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(teacher_checkpoint).eval()
    videos = [load_frames(str(clip), 6, 56 * 56) for clip in sorted((tiny_world / "clips").glob("*.mp4"))[:2]]
    said = ["I hear a dog.", "I hear a bell, then a dog."]
    rows = [
        {"prompt": [{"role": "user", "content": "What?"}], "completion": text, "video": video}
        for text, video in zip(said, videos, strict=True)
    ]
    rows.append({"prompt": [{"role": "user", "content": "Without a video?"}], "completion": "No.", "video": None})
    collator = CompletionCollator(processor)
    batch = collator(rows)
    assert collator.window_s is None
    decode = processor.tokenizer.decode
    assert [decode(labels[labels != IGNORED]) for labels in batch["labels"]] == [r["completion"] + "<|im_end|>" for r in rows]
    with torch.inference_mode():
        together = model(**batch).loss.item()
        alone = [model(**collator([row])).loss.item() for row in rows]
    counts = [int((labels != IGNORED).sum()) for labels in batch["labels"]]
    assert together == pytest.approx(np.average(alone, weights=counts), abs=1e-5), "padding changes nothing"
