"""The dry run: it counts what the run would send, sends nothing, and reads what the requests so far have used."""

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
from sightsound.engines.cost import TEMPLATE_TOKENS, dry_run, read_price, rough_tokens
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


def used(prompt_tokens: int, completion_tokens: int) -> dict:
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "cached_tokens": None}
    return {"prompt": "", "completions": [], "usage": usage}


def table(text: str) -> dict[str, list[str]]:
    """Row -> its figures: per request, whole run, still to do."""
    return {line[:22].strip(): line[22:].split() for line in text.splitlines() if line.startswith(tuple("rpacU"))}


def dry(folder, num_keys: int = 20, build=heard, sampling: Sampling = SAMPLING, model: str = "m") -> str:
    return dry_run(keys(num_keys), build, sampling, model=model, base_url=None, output_dir=folder)


def test_rough_figures_are_near_what_processors_count(student_checkpoint, teacher_checkpoint):
    """For the order of magnitude, before any request has been answered."""
    from sightsound.engines.transformers import TransformersEngine

    for checkpoint, request in ((student_checkpoint, heard("0")), (teacher_checkpoint, seen("0"))):
        engine = TransformersEngine.load(str(checkpoint), 1, Sampling(1, 0.0, 1, 0))
        (((result,),)) = list(engine.complete([request], Sampling(1, 0.0, 1, 0)))
        rough = rough_tokens(request, audio_tokens_per_s=12.5)  # the miniature's
        assert sum(rough) == pytest.approx(result.usage.prompt_tokens, rel=0.5)
        assert rough[0] == (25 if request.audio is not None else 0)


def test_rough_figures_follow_what_makers_say_of_their_models():
    assert rough_tokens(heard("0"), 10) == (20, TEMPLATE_TOKENS + int(np.ceil(len(TEXT) / 4)))
    frames = Frames(np.zeros((16, 364, 420, 3), np.uint8), fps=1.6)
    assert rough_tokens(ChatRequest("0", "", video=frames)) == (0, TEMPLATE_TOKENS + 8 * 13 * 15)


def test_a_sample_is_spread_over_all_requests_and_scaled_up(tmp_path):
    asked = []

    def build(key: str) -> ChatRequest:
        asked.append(int(key))
        return ChatRequest(key, "x" * 4 * int(key))

    text = dry(tmp_path, 1000, build)
    assert asked == list(range(0, 1000, 50))
    assert text.startswith("m: 1,000 requests, 0 of them journaled; from a sample of 20\n")
    mean = TEMPLATE_TOKENS + np.mean(asked)
    assert table(text)["prompt tokens"] == [f"{mean:,.1f}", f"{1000 * mean:,.0f}", f"{1000 * mean:,.0f}"]
    assert table(text)["completion tokens"] == ["800.0", "800,000", "800,000"], "n times max_tokens, until one is answered"


def test_fewer_requests_than_a_sample_are_all_counted(tmp_path):
    asked = []
    dry(tmp_path, 3, lambda key: asked.append(key) or heard(key))
    assert asked == ["0", "1", "2"]
    with pytest.raises(InputError, match="there is nothing to ask"):
        dry(tmp_path, 0)


def test_the_usage_of_what_any_rank_has_journaled_is_scaled_and_not_paid_again(tmp_path):
    journal(tmp_path, {"0": used(100, 40), "elsewhere": used(10**6, 10**6), "3": {"outcome": "refused", "detail": "no"}})
    journal(tmp_path / ".ranks" / "1-of-2", {"7": used(140, 80), "0": used(100, 40)})
    with open(tmp_path / "journal.jsonl", "a") as half:
        half.write('["8", {"comple')
    text = dry(tmp_path, 10)
    assert text.startswith("m: 10 requests, 3 of them journaled") and "the usage of 2 answered requests" in text
    assert table(text)["audio tokens"] == ["50.0", "500", "350"], "two seconds each"
    assert table(text)["prompt tokens"] == ["70.0", "700", "490"], "the rest of 120 on average"
    assert table(text)["completion tokens"] == ["60.0", "600", "420"] and "upper bound" not in text
    assert (tmp_path / "journal.jsonl").read_text().endswith('["8", {"comple'), "a dry run changes nothing"


def test_rows_without_a_clip_cost_nothing(tmp_path):
    def build(key: str) -> ChatRequest:
        if int(key) % 4 == 0:
            raise MediaError(MISSING_MEDIA, "no clip")
        return heard(key)

    text = dry(tmp_path, 1000, build)
    assert "25 % of the sample has no clip" not in text, "every 50th of 1,000 is even: one in two is a multiple of 4"
    assert table(text)["requests"] == ["1.0", "500", "500"] and table(text)["audio tokens"] == ["50.0", "25,000", "25,000"]


PRICED = {"date": "2030-01-02", "models": {"ears": {"prompt": 2, "audio": 40, "completion": 10, "audio_tokens_per_s": 10}}}


@pytest.fixture
def prices(tmp_path, monkeypatch):
    file = tmp_path / "prices.yaml"
    file.write_text(yaml.safe_dump(PRICED))
    monkeypatch.setattr(costs, "PRICES", file)
    return file


def test_the_table_has_requests_tokens_and_price(prices, tmp_path):
    text = dry_run(
        keys(1000),
        heard,
        Sampling(1, 0.0, 64, 0),
        model="lab/ears",
        base_url=["http://127.0.0.1:9/v1"],
        output_dir=tmp_path / "out",
        notes=["A note."],
    )
    other = TEMPLATE_TOKENS + int(np.ceil(len(TEXT) / 4))
    lines = table(text)
    assert lines["requests"] == ["1.0", "1,000", "1,000"]
    assert lines["prompt tokens"] == [f"{other:,.1f}", f"{1000 * other:,}", f"{1000 * other:,}"]
    assert lines["audio tokens"] == ["20.0", "20,000", "20,000"]
    assert lines["completion tokens"] == ["64.0", "64,000", "64,000"]
    usd = (1000 * other * 2 + 20_000 * 40 + 64_000 * 10) / 1e6
    assert f"{usd:,.2f}" in text and "USD, at most prices of 2030-01-02" in text
    assert "a rough estimate" in text and "an upper bound" in text
    assert text.endswith("A note.")
    assert not (tmp_path / "out").exists(), "a dry run writes nothing"


def test_a_model_without_a_price_is_said_to_have_none(prices, tmp_path):
    text = dry(tmp_path / "out", 2)
    assert "its price is not known here" in text and "USD" not in text


def test_a_complete_stage_costs_nothing(tmp_path):
    (tmp_path / "stage.json").write_text(json.dumps({"settings": {}, "complete": True}))
    assert dry(tmp_path) == (f"{tmp_path} is complete: there is nothing left to pay")


def test_a_price_may_have_a_date_of_its_own(tmp_path):
    file = tmp_path / "prices.yaml"
    entry = {"prompt": 1, "audio": 2, "completion": 3}
    table = {"date": "2030-01-02", "models": {"old": entry | {"date": "2020-01-02"}, "new": entry}}
    file.write_text(yaml.safe_dump(table))
    assert [read_price(name, file).date for name in ("old", "new")] == ["2020-01-02", "2030-01-02"]


def test_the_published_price_table_has_a_date_and_says_where_it_is_from():
    table = yaml.safe_load(costs.PRICES.read_text())
    assert str(table["date"]) and "An example to be edited" in table["source"]
    for model in table["models"]:
        price = read_price(f"openai/{model}")
        assert price.usd(1e6, 1e6, 1e6) == price.prompt + price.audio + price.completion > 0
        assert price.audio_tokens_per_s > 0
    assert read_price("Qwen/Qwen2.5-VL-32B-Instruct") is None


@pytest.mark.parametrize("text", ["", "models: 3", "models: {ears: {prompt: cheap}}\ndate: 2030-01-01", "{"])
def test_a_table_that_cannot_be_used_is_one_line(text, tmp_path):
    file = tmp_path / "prices.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match="expected `date` and, per model, USD per million of prompt, audio, completion tokens"):
        read_price("ears", file)
