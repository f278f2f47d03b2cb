"""The dry run: what it counts is what the run would send, and what it promises is what the price table says."""

import json

import numpy as np
import pytest
import yaml

from sightsound.cli import InputError
from sightsound.data.clips import MediaError
from sightsound.data.frames import Frames
from sightsound.data.schema import MISSING_MEDIA, SAMPLING_RATE
from sightsound.engines import cost as costs
from sightsound.engines.base import ChatRequest, Sampling
from sightsound.engines.cost import HeuristicCounter, ProcessorCounter, PromptTokens, dry_run, estimate, read_price
from sightsound.stage import Journal


TEXT = "Which sound comes first?\nA. dog\nB. bell\nGive one choice inside <answer></answer>."
SAMPLING = Sampling(n=8, temperature=1.0, max_tokens=100, seed=0)


def sound(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * SAMPLING_RATE), np.float32)


def heard(key: str) -> ChatRequest:
    return ChatRequest(key, TEXT, audio=sound(2.0))


def seen(key: str) -> ChatRequest:
    return ChatRequest(key, TEXT, video=Frames(np.zeros((6, 56, 56, 3), np.uint8), fps=3.0))


def keys(count: int) -> list[str]:
    return [str(i) for i in range(count)]


def journal(folder, entries: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    written = Journal(folder / "journal.jsonl")
    written.append(entries.items())
    written.close()


def said(*texts: str) -> dict:
    return {"prompt": "", "completions": [{"text": text, "finish_reason": "stop"} for text in texts]}


def test_a_local_processor_counts_what_the_model_gets(student_checkpoint, teacher_checkpoint):
    from transformers import AutoProcessor

    tokens = ProcessorCounter(str(student_checkpoint)).prompt(heard("0"))
    assert tokens.audio == 25, "two seconds; the miniature's encoder takes 80 ms a token"
    processor = AutoProcessor.from_pretrained(student_checkpoint)
    text_tokens = len(processor.tokenizer(TEXT)["input_ids"])
    assert text_tokens < tokens.other < text_tokens + 40, "text and template"
    tokens = ProcessorCounter(str(teacher_checkpoint)).prompt(seen("0"))
    pads = 3 * 2 * 2  # three pairs of frames, two by two squares of 28 pixels
    processor = AutoProcessor.from_pretrained(teacher_checkpoint)
    assert tokens.audio == 0 and tokens.other > pads + len(processor.tokenizer(TEXT)["input_ids"])


def test_estimates_are_near_what_processors_count(student_checkpoint, teacher_checkpoint):
    guess = HeuristicCounter(audio_tokens_per_s=12.5)  # the miniature's
    for checkpoint, request in ((student_checkpoint, heard("0")), (teacher_checkpoint, seen("0"))):
        real, guessed = ProcessorCounter(str(checkpoint)).prompt(request), guess.prompt(request)
        assert guessed.audio == real.audio
        assert guessed.other == pytest.approx(real.other, rel=0.5)


def test_estimates_follow_what_makers_say_of_their_models():
    text = len(TEXT) / 4
    assert HeuristicCounter(10).prompt(heard("0")) == PromptTokens(20, costs.TEMPLATE_TOKENS + int(np.ceil(text)))
    frames = Frames(np.zeros((16, 364, 420, 3), np.uint8), fps=1.6)
    tokens = HeuristicCounter().prompt(ChatRequest("0", "", video=frames))
    assert tokens.other - costs.TEMPLATE_TOKENS == 8 * 13 * 15


def test_a_sample_is_spread_over_all_requests_and_scaled_up(tmp_path):
    asked = []

    def build(key: str) -> ChatRequest:
        asked.append(int(key))
        return ChatRequest(key, "x" * 4 * int(key))

    found = estimate(keys(1000), build, SAMPLING, HeuristicCounter(), tmp_path)
    assert asked == list(range(0, 1000, 50))
    assert (found.requests, found.journaled, found.sampled, found.unusable) == (1000, 0, 20, 0)
    assert found.prompt == costs.TEMPLATE_TOKENS + np.mean(asked)
    assert (found.completion, found.is_bound) == (800, True), "n times max_tokens, until something is journaled"


def test_fewer_requests_than_a_sample_are_all_counted(tmp_path):
    asked = []
    estimate(keys(3), lambda key: asked.append(key) or heard(key), SAMPLING, HeuristicCounter(), tmp_path)
    assert asked == ["0", "1", "2"]
    with pytest.raises(InputError, match="there is nothing to ask"):
        estimate([], heard, SAMPLING, HeuristicCounter(), tmp_path)


def test_what_is_journaled_by_any_rank_is_not_paid_again(tmp_path):
    journal(tmp_path, {"0": said("x" * 40, "x" * 80), "elsewhere": said("x" * 4000)})
    journal(tmp_path / ".ranks" / "1-of-2", {"7": said("x" * 120), "0": said("x" * 40)})
    with open(tmp_path / "journal.jsonl", "a") as half:
        half.write('["8", {"comple')
    found = estimate(keys(10), heard, SAMPLING, HeuristicCounter(), tmp_path)
    assert (found.journaled, found.left) == (2, 8)
    assert (found.completion, found.is_bound) == (8 * np.mean([10, 20, 30, 10]), False)
    assert (tmp_path / "journal.jsonl").read_text().endswith('["8", {"comple'), "a dry run changes nothing"


def test_rows_without_a_clip_cost_nothing(tmp_path):
    def build(key: str) -> ChatRequest:
        if int(key) % 4 == 0:
            raise MediaError(MISSING_MEDIA, "no clip")
        return heard(key)

    found = estimate(keys(20), build, SAMPLING, HeuristicCounter(), tmp_path)
    assert found.unusable == 0.25
    assert found.tokens(1000)["requests"] == 750
    assert found.tokens(1000)["audio"] == 750 * 50


PRICED = {"date": "2030-01-02", "models": {"ears": {"prompt": 2, "audio": 40, "completion": 10, "audio_tokens_per_s": 10}}}


@pytest.fixture
def prices(tmp_path, monkeypatch):
    file = tmp_path / "prices.yaml"
    file.write_text(yaml.safe_dump(PRICED))
    monkeypatch.setattr(costs, "PRICES", file)
    monkeypatch.setattr(costs.read_price, "__defaults__", (file,))
    return file


def test_the_table_tells_requests_tokens_and_price(prices, tmp_path):
    text = dry_run(keys(1000), heard, Sampling(1, 0.0, 64, 0), "lab/ears", "http://api/v1", tmp_path / "out", ["A note."])
    lines = {line[:22].strip(): line[22:].split() for line in text.splitlines() if line.startswith(tuple("rpacU"))}
    other = costs.TEMPLATE_TOKENS + int(np.ceil(len(TEXT) / 4))
    assert lines["requests"] == ["1.0", "1,000", "1,000"]
    assert lines["prompt tokens"] == [f"{other:,.1f}", f"{1000 * other:,}", f"{1000 * other:,}"]
    assert lines["audio tokens"] == ["20.0", "20,000", "20,000"]
    assert lines["completion tokens"] == ["64.0", "64,000", "64,000"]
    usd = (1000 * other * 2 + 20_000 * 40 + 64_000 * 10) / 1e6
    assert f"{usd:,.2f}" in text and "prices of 2030-01-02" in text and "at most" in text
    assert "100 ms of sound" in text and "an upper bound" in text
    assert text.endswith("A note.")
    assert not (tmp_path / "out").exists(), "a dry run writes nothing"


def test_a_model_without_a_price_is_said_to_have_none(prices, student_checkpoint, tmp_path):
    text = dry_run(keys(2), heard, SAMPLING, str(student_checkpoint), None, tmp_path / "out")
    assert "its price is not known here" in text and "USD" not in text
    assert "counted with the processor of" in text


def test_a_complete_stage_costs_nothing(tmp_path):
    (tmp_path / "stage.json").write_text(json.dumps({"settings": {}, "complete": True}))
    assert dry_run(keys(2), heard, SAMPLING, "ears", "http://api/v1", tmp_path) == (
        f"{tmp_path} is complete: there is nothing left to pay"
    )


def test_a_price_may_have_a_date_of_its_own(tmp_path):
    file = tmp_path / "prices.yaml"
    entry = {"prompt": 1, "audio": 2, "completion": 3}
    table = {"date": "2030-01-02", "models": {"old": entry | {"date": "2020-01-02"}, "new": entry}}
    file.write_text(yaml.safe_dump(table))
    assert [read_price(name, file)[0].date for name in ("old", "new")] == ["2020-01-02", "2030-01-02"]


def test_the_published_price_table_has_a_date_and_says_where_it_is_from():
    table = yaml.safe_load(costs.PRICES.read_text())
    assert str(table["date"]) and "An example to be edited" in table["source"]
    for model in table["models"]:
        price, audio_tokens_per_s = read_price(f"openai/{model}")
        assert price.usd(1e6, 1e6, 1e6) == price.prompt + price.audio + price.completion > 0
        assert audio_tokens_per_s > 0
    assert read_price("Qwen/Qwen2.5-VL-32B-Instruct") == (None, costs.AUDIO_TOKENS_PER_S)


@pytest.mark.parametrize("text", ["", "models: 3", "models: {ears: {prompt: cheap}}\ndate: 2030-01-01", "{"])
def test_a_table_that_cannot_be_used_is_one_line(text, tmp_path):
    file = tmp_path / "prices.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match="expected `date` and, per model, USD per million of prompt, audio, completion tokens"):
        read_price("ears", file)
