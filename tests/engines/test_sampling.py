"""A checkpoint's `generation_config.json` changes nothing, servers get the fields that they take, results say what was sent."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from sightsound.data.audio import decode_audio
from sightsound.engines.base import ChatRequest, Completion, Sampling
from sightsound.engines.openai import OpenAIEngine
from sightsound.engines.sampling import GROUPS, NEUTRAL, OPENAI_FIELDS
from sightsound.engines.transformers import TransformersEngine
from sightsound.method.answers import parse_answer
from sightsound.method.prompts import COT_PROMPT
from sightsound.training import validation
from sightsound.training.validation import ValidationSet
from tests.support.openai_server import OpenAIServer
from tests.support.tiny import REPO
from tests.support.trainers import make_rows, make_trainer


GREEDY = Sampling(n=1, temperature=0.0, max_tokens=12, seed=0)
SAMPLED = Sampling(n=4, temperature=1.0, max_tokens=12, seed=0)

# By itself, each of these changes what `generate` writes where nothing else is set.
NASTY: dict[str, Any] = {
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 1,
    "suppress_tokens": list(range(300)),
    "begin_suppress_tokens": list(range(500)),
    "bad_words_ids": [[token] for token in range(300)],
    "sequence_bias": [[[7], 100.0]],
    "exponential_decay_length_penalty": [1, 3.0],
    "num_beams": 3,
    "max_time": 0.0001,
}
NASTY_DRAWS: dict[str, Any] = {
    "top_k": 1,
    "top_p": 0.01,
    "min_p": 0.99,
    "typical_p": 0.01,
    "epsilon_cutoff": 0.5,
    "eta_cutoff": 0.5,
    "temperature": 0.01,
}
EVERYTHING = {"do_sample": True, "max_length": 3, "max_new_tokens": 2, "num_return_sequences": 2, **NASTY, **NASTY_DRAWS}


def with_config(checkpoint: Path, folder: Path, **changed: Any) -> Path:
    """The checkpoint with other fields in its generation config than the tokens that end a text."""
    shutil.copytree(checkpoint, folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    return folder


@pytest.fixture(scope="module")
def everything(student_checkpoint, tmp_path_factory) -> Path:
    return with_config(student_checkpoint, tmp_path_factory.mktemp("everything") / "model", **EVERYTHING)


@pytest.fixture(scope="module")
def requests(questions) -> list[ChatRequest]:
    sounds = [decode_audio(row["audio"]).waveform for row in questions[:3]]
    return [ChatRequest(f"a{i}", f"What is heard? {i}", audio=sound) for i, sound in enumerate(sounds)]


def written(checkpoint: Path, requests: list[ChatRequest], sampling: Sampling) -> list[list[str]]:
    engine = TransformersEngine.load(str(checkpoint), 16, sampling)
    (results,) = engine.complete(requests, sampling)
    return [[completion.text for completion in result.completions] for result in results]


@pytest.mark.parametrize("name", NASTY)
def test_no_field_of_a_generation_config_changes_greedy_text(student_checkpoint, requests, tmp_path, name):
    nasty = with_config(student_checkpoint, tmp_path / "model", **{name: NASTY[name]})
    assert written(nasty, requests, GREEDY) == written(student_checkpoint, requests, GREEDY)


@pytest.mark.parametrize("name", NASTY_DRAWS)
def test_no_field_of_a_generation_config_changes_draws(student_checkpoint, requests, tmp_path, name):
    nasty = with_config(student_checkpoint, tmp_path / "model", do_sample=True, **{name: NASTY_DRAWS[name]})
    drawn = written(nasty, requests, SAMPLED)
    assert drawn == written(student_checkpoint, requests, SAMPLED)
    assert [len(set(texts)) for texts in drawn] == [4, 4, 4], "n different traces"


def test_all_of_them_at_once_change_nothing(student_checkpoint, everything, requests):
    for sampling in (GREEDY, SAMPLED):
        assert written(everything, requests, sampling) == written(student_checkpoint, requests, sampling)


def test_the_tokens_that_end_a_text_are_those_of_the_generation_config(student_checkpoint, requests, tmp_path):
    """All of them, and the tokenizer's where it names none."""
    engine = TransformersEngine.load(str(student_checkpoint), 16, GREEDY)
    with torch.inference_mode():
        inputs = engine._inputs(requests[:1], [f"<|AUDIO|>{requests[0].text}"])
        said = int(engine.model.generate(**inputs, max_new_tokens=1, do_sample=False)[0, -1])
    every = list(range(engine.model.config.text_config.vocab_size))
    assert said in every
    ending = TransformersEngine.load(str(with_config(student_checkpoint, tmp_path / "all", eos_token_id=every)), 16, GREEDY)
    ((result, *_),) = ending.complete(requests, GREEDY)
    assert (result.usage.completion_tokens, result.completions[0].finish_reason) == (1, "stop")
    silent = TransformersEngine.load(str(with_config(student_checkpoint, tmp_path / "none", eos_token_id=None)), 16, GREEDY)
    assert [result.completions for result in next(silent.complete(requests, GREEDY))] == [
        result.completions for result in next(engine.complete(requests, GREEDY))
    ]


def test_the_generation_config_is_what_it_was_afterwards(everything, requests):
    """A student that was judged is saved with its own."""
    engine = TransformersEngine.load(str(everything), 16, GREEDY)
    before = engine.model.generation_config.to_dict()
    list(engine.complete(requests, GREEDY))
    assert engine.model.generation_config.to_dict() == before and before["repetition_penalty"] == 1.3


def test_validation_is_greedy_whatever_the_checkpoint_ships(student_checkpoint, everything, questions, monkeypatch):
    texts: list[str] = []

    def keep(text: str, choices: list[str]) -> Any:
        texts.append(text)
        return parse_answer(text, choices)

    monkeypatch.setattr(validation, "parse_answer", keep)
    asked = ValidationSet(Dataset.from_list(questions[:3]), COT_PROMPT, batch_size=3, max_tokens=12)
    for checkpoint in (student_checkpoint, everything):
        engine = TransformersEngine.load(str(checkpoint), 3, GREEDY)
        asked.count(engine.model, engine.processor, range(3))
    assert texts[:3] == texts[3:] and len(texts) == 6 and all(texts)


@pytest.mark.parametrize("share_prompts", [True, False])
def test_grpo_samples_from_the_policy_itself(student_checkpoint, everything, questions, tmp_path, share_prompts):
    rows, drawn = make_rows(questions)[:2], []
    for checkpoint in (student_checkpoint, everything):
        trainer = make_trainer(checkpoint, rows, tmp_path / checkpoint.name, share_prompts=share_prompts)
        trainer.model.train()
        torch.manual_seed(0)
        batch = trainer._generate_and_score_completions([row for row in rows for _ in range(4)])
        drawn.append(batch["completion_ids"].tolist())
    assert drawn[0] == drawn[1]
    assert len({tuple(ids) for ids in drawn[0]}) == 8


def message(server: OpenAIServer, requests: list[ChatRequest], sampling: Sampling = GREEDY) -> list[Any]:
    engine = OpenAIEngine("tiny", server.base_url, concurrency=1)
    return [result for part in engine.complete(requests, sampling) for result in part]


def test_a_server_is_sent_every_field(requests):
    with OpenAIServer(lambda ask: ["yes"] * ask.n) as server:
        results = message(server, requests, SAMPLED)
    assert [ask.neutral for ask in server.asked] == [NEUTRAL] * 3
    assert NEUTRAL == {
        **{"top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
        **{"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
    }
    assert [result.sampling for result in results] == [{"n": 4, "temperature": 1.0, "max_tokens": 12, **NEUTRAL}] * 3


def one_at_a_time(template: str, known: tuple[str, ...]) -> Callable[[set[str]], str | None]:
    def refusal_of(fields: set[str]) -> str | None:
        unknown = [name for name in sorted(fields & set(NEUTRAL)) if name not in known]
        return template.format(unknown[0]) if unknown else None

    return refusal_of


def all_at_once(template: str, known: tuple[str, ...]) -> Callable[[set[str]], str | None]:
    def refusal_of(fields: set[str]) -> str | None:
        unknown = [name for name in sorted(fields & set(NEUTRAL)) if name not in known]
        return template.format(", ".join(unknown)) if unknown else None

    return refusal_of


@pytest.mark.parametrize(
    ("refusal_of", "taken"),
    [
        (all_at_once("Unrecognized request arguments supplied: {}", OPENAI_FIELDS), OPENAI_FIELDS),
        (one_at_a_time("Unknown parameter: '{}'.", OPENAI_FIELDS), OPENAI_FIELDS),
        (one_at_a_time("Unsupported parameter: '{}' is not supported with this model.", ()), ()),
        (one_at_a_time("property '{}' is unsupported", (*OPENAI_FIELDS, "top_k")), (*OPENAI_FIELDS, "top_k")),
        (all_at_once('Invalid JSON payload received. Unknown name "{}": Cannot find field.', OPENAI_FIELDS), OPENAI_FIELDS),
        (all_at_once("Extra inputs are not permitted", OPENAI_FIELDS), OPENAI_FIELDS),
        (all_at_once("The request does not match the schema", OPENAI_FIELDS), OPENAI_FIELDS),
        (all_at_once("Penalty is not enabled for this model", GROUPS[0]), GROUPS[0]),
    ],
    ids=[
        "named together",
        "named one by one",
        "a model that takes none",
        "some extras",
        "Google",
        "unnamed",
        "schema",
        "unnamed penalty",
    ],
)
def test_a_server_that_refuses_fields_does_not_get_them_and_rows_say_so(requests, refusal_of, taken):
    with OpenAIServer(lambda ask: ["yes"] * ask.n, refusal_of=refusal_of) as server:
        results = message(server, requests)
    sent = {name: NEUTRAL[name] for name in taken}
    assert [ask.neutral for ask in server.asked] == [sent] * 3
    assert [result.completions for result in results] == [[Completion("yes", "stop")]] * 3
    assert [{name: result.sampling[name] for name in NEUTRAL} for result in results] == [dict.fromkeys(NEUTRAL) | sent] * 3
    assert len(server.statuses) <= 3 + len(NEUTRAL), "what a server refuses is learnt once"


def test_a_request_that_is_refused_for_itself_costs_no_field(requests):
    """Before and after the server has answered anybody; an odd question may even name a field."""
    refusals = iter(
        ["a clip of this kind is not supported", *["a clip of this kind is not supported"] * 3, None, "top_k?", None]
    )
    with OpenAIServer(lambda ask: ["yes"], refusal_of=lambda _: next(refusals)) as server:
        results = message(server, [*requests, ChatRequest("b", "Another?")])
    assert [result.outcome for result in results] == ["refused", None, "refused", None]
    assert [ask.neutral for ask in server.asked] == [NEUTRAL, NEUTRAL]


@pytest.mark.parametrize(
    "file", ["docs/scale.md", "recipes/qwen2_audio_7b/README.md", "recipes/run_functions.sh", "dataset_builders/traces.py"]
)
def test_every_line_that_starts_a_server_has_the_flag(file):
    starts = re.split(r"vllm serve", (REPO / file).read_text())[1:]
    assert starts and all("--generation-config vllm" in start[:400] for start in starts)
