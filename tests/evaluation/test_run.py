"""`python -m evaluation run`: models, modalities and methods that it takes, several benchmarks at once, what it refuses."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from evaluation import compare
from evaluation.reporting.sections import missing_answers
from evaluation.running import arguments as run_arguments
from sightsound.benchmarks import mmau, music_avqa
from sightsound.cli import InputError
from sightsound.data import schema
from sightsound.engines.sampling import NEUTRAL
from sightsound.stage import Stage, fingerprint
from tests.support.evaluation import always, read, run, write_benchmark
from tests.support.openai_server import OpenAIServer
from tests.support.tiny import trace, trace_row, write_traces


MUSIC = {"modality": "Audio", "template": "What is heard?", "in_paper": True}
MMAU = {"task": "sound", "difficulty": "easy", "category": "Reasoning", "sub_category": "x", "source_dataset": "y"}


@pytest.fixture(scope="module")
def benchmarks(questions, tmp_path_factory) -> dict[str, Path]:
    """All three, from the clips of the tiny world."""
    folder = tmp_path_factory.mktemp("benchmarks")
    return {
        "avqa": write_benchmark(questions[:4], schema.avqa_audio_features(), "validation", folder / "avqa"),
        "mmau": write_benchmark([r | MMAU for r in questions[:3]], mmau.features(), "test", folder / "mmau"),
        "music_avqa": write_benchmark([r | MUSIC for r in questions[:2]], music_avqa.features(), "test", folder / "music"),
    }


def test_several_benchmarks_go_into_a_folder_each(benchmarks, tmp_path, capsys):
    dataset = [f"{name}={folder}" for name, folder in benchmarks.items()]
    flags = {"benchmark": ",".join(benchmarks), "dataset": dataset, "model": "tiny", "output_dir": tmp_path / "run", "arm": "a"}
    with OpenAIServer(always("<answer>A</answer>")) as server:
        run(**flags, base_url=[server.base_url, server.base_url], model_revision="abc")
        assert Counter(ask.model for ask in server.asked) == {"tiny": 4 + 3 + 2}
    for name, count in (("avqa", 4), ("mmau", 3), ("music_avqa", 2)):
        results, predictions = read(tmp_path / "run" / name)
        assert results["benchmark_questions"] == {"avqa": None, "mmau": 1000, "music_avqa": 9129}[name]
        assert results["benchmark"] == name and results["outcomes"] == {"none": {"answered": count}}
        assert results["results"]["none"]["n"] == len(predictions) == count
        assert {(p["benchmark"], p["model_revision"]) for p in predictions} == {
            (name, "tiny at its server, revision abc as told")
        }
        generation = json.loads(predictions[0]["generation"])
        assert generation.items() >= {"engine": "server", "prompt_version": "1", "temperature": 0.0, "max_tokens": 512}.items()
        assert all(json.loads(p["generation"]).items() >= NEUTRAL.items() for p in predictions)
        assert results["generation"] == predictions[0]["generation"]
        assert ("official" in results) == (name != "avqa") and results["results"]["none"]["low"] >= 0
    capsys.readouterr()
    # Another address is no other run; nobody is asked.
    run(**flags, base_url="http://127.0.0.1:1/v1", model_revision="abc")
    assert capsys.readouterr().out.count("is complete") == 3
    compare.main(["--runs", str(tmp_path / "run"), str(tmp_path / "run"), "--json"])
    assert set(json.loads(capsys.readouterr().out)) == set(benchmarks)


def test_a_server_is_given_the_sound_and_the_frames(benchmarks, tiny_world, tmp_path):
    flags = {"dataset": benchmarks["avqa"], "model": "tiny", "media_dir": tiny_world / "clips", "num_frames": 4}
    for modality, controls in (("video", ["text_only"]), ("audio_video", ["silent", "swapped"])):
        with OpenAIServer(always("<answer>A</answer>")) as server:
            given = {"base_url": server.base_url, "modality": modality, "controls": controls}
            run(**flags, **given, output_dir=tmp_path / modality)
        kinds = Counter((ask.audio is not None, ask.video is not None) for ask in server.asked)
        assert kinds == {(False, True): 4, (False, False): 4} if modality == "video" else {(True, True): 12}
        assert read(tmp_path / modality)[0]["method"] == f"{modality}/direct"


def test_a_prompt_file_is_asked_recorded_and_no_method_of_the_paper(benchmarks, tmp_path):
    prompt = tmp_path / "mine.txt"
    prompt.write_text("Choose.\n{choices}\n{question}\n")
    flags = {"dataset": benchmarks["avqa"], "model": "tiny", "prompt_file": prompt, "output_dir": tmp_path / "run"}
    with OpenAIServer(always("<answer>A</answer>")) as server:
        run(**flags, base_url=server.base_url)
        assert all(ask.text.startswith("Choose.\nA. ") for ask in server.asked)
        digest = fingerprint(prompt)[:12]
        prompt.write_text("{question}\n{choices}\n")
        with pytest.raises(InputError, match=r"was started with other settings \(prompt_sha256: "):
            run(**flags, base_url=server.base_url)
        with pytest.raises(InputError, match=r"--method cot and --prompt_file .* are two prompts; give one of them"):
            run(**flags | {"output_dir": tmp_path / "other"}, base_url=server.base_url, method="cot")
    results, predictions = read(tmp_path / "run")
    assert results["method"] == predictions[0]["method"] == f"audio/mine@{digest}"
    assert json.loads(results["generation"])["prompt_version"] == results["settings"]["prompt_version"] == f"mine@{digest}"
    assert "prompt_file" not in results["settings"] and len(server.asked) == 4


def test_a_question_without_reasoning_or_clip_is_counted_and_unanswered(benchmarks, questions, tmp_path, capsys):
    said = [trace("<think>I hear a bell.</think><answer>bell</answer>", 0, "I hear a bell.")]
    traces = write_traces([trace_row(questions[0], said), trace_row(questions[2], said)], tmp_path / "traces")
    flags = {"dataset": benchmarks["avqa"], "model": "tiny", "method": "cot_distill", "traces": traces}
    with OpenAIServer(always("<answer>A</answer>")) as server:
        run(**flags, base_url=server.base_url, output_dir=tmp_path / "run")
    assert len(server.asked) == 2 and all("I hear a bell." in ask.text for ask in server.asked)
    results, predictions = read(tmp_path / "run")
    assert results["outcomes"] == {"none": {"answered": 2, "no_trace": 2}}
    assert results["results"]["none"]["n"] == 4 and results["results"]["none"]["unanswered"] == 50.0
    assert [p["finish_reason"] for p in predictions] == ["stop", "no_trace", "stop", "no_trace"]
    assert [p["output"] for p in predictions] == ["<answer>A</answer>", None] * 2, "nothing came, not an empty answer"
    assert json.loads(predictions[0]["generation"])["traces"] == fingerprint(traces)
    assert "not asked or not answered: 2 no_trace" in capsys.readouterr().out
    assert missing_answers(results | {"clips_cut": 1}) == [("the clip", 2, "2 no_trace", 1)]
    assert missing_answers(results | {"outcomes": {"none": {"answered": 4}}}) == []


def test_one_clip_cannot_be_swapped_and_nobody_is_asked(benchmarks, tmp_path):
    with OpenAIServer(always("<answer>A</answer>")) as server:
        flags = {
            "model": "tiny",
            "base_url": server.base_url,
            "output_dir": tmp_path / "run",
            "controls": ["silent", "swapped"],
        }
        with pytest.raises(InputError, match="needs questions on at least two clips; give a larger --limit"):
            run(**flags, dataset=benchmarks["avqa"], limit=1)
    assert not server.asked and not (tmp_path / "run").exists()


def test_a_model_that_moved_on_the_hub_does_not_answer_the_rest(benchmarks, student_checkpoint, tmp_path):
    """The first half came from another commit; offline the cache says which one `main` is."""
    repository = Path(constants.HF_HUB_CACHE) / "models--alice--moving"
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(student_checkpoint, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    flags = {
        "dataset": benchmarks["avqa"],
        "model": "alice/moving",
        "output_dir": tmp_path / "run",
        "max_tokens": 2,
        "limit": 1,
    }
    (repository / "refs" / "main").write_text("a" * 40)
    run(**flags)
    assert read(tmp_path / "run")[0]["model_revision"] == "a" * 40
    run(**flags)  # complete
    (repository / "refs" / "main").write_text("b" * 40)
    with pytest.raises(InputError, match=f"model_commit: '{'a' * 40}' then, '{'b' * 40}' now"):
        run(**flags)
    with pytest.raises(InputError, match=f"model_revision: None then, '{'a' * 40}' now"):
        run(**flags, model_revision="a" * 40)


def test_a_dataset_that_moved_on_the_hub_does_not_ask_the_rest(tmp_path):
    args = run_arguments.RunArguments(model="tiny", output_dir=str(tmp_path), dataset=["alice/mmau"], base_url=["u"])
    (source,) = run_arguments.read_sources(args)
    with Stage(tmp_path / "run", run_arguments.settings_of(args, source, "a" * 40, None)):
        pass
    with (
        pytest.raises(InputError, match="dataset_commit"),
        Stage(tmp_path / "run", run_arguments.settings_of(args, source, "b" * 40, None)),
    ):
        pass


REFUSED = {
    "an unknown benchmark": ({"benchmark": "avqa,vggsound"}, "unknown benchmark 'vggsound'"),
    "which benchmark's dataset": ({"benchmark": "avqa,mmau"}, r"name the benchmark \(avqa, mmau\), as NAME="),
    "a benchmark without a dataset": ({"benchmark": "avqa,mmau", "dataset": "mmau=d"}, "nothing for avqa; give avqa=FOLDER"),
    "a dataset of no benchmark": ({"dataset": "mmau=d"}, "mmau is not among --benchmark avqa"),
    "two datasets": ({"dataset": ["d", "avqa=e"]}, "two values for avqa, d and e"),
    "videos from nowhere": ({"modality": "video"}, "--modality video needs --media_dir, the folder with the videos, for avqa"),
    "sounds that are to be seen": (
        {"benchmark": "mmau", "modality": "audio_video", "media_dir": "m"},
        "mmau has no videos; ask it with --modality audio",
    ),
    "silence of a silent video": (
        {"modality": "video", "media_dir": "m", "controls": "silent"},
        "change the sound; --modality video has none",
    ),
    "distillation from nothing": ({"method": "cot_distill"}, "with the teacher's traces, for avqa"),
    "traces for nothing": ({"traces": "t"}, "--traces is not read with --modality audio --method direct"),
    "a base behind a server": ({"base_url": "http://u", "base_model": "b"}, "the server at --base_url has its own base"),
    "a base of no adapter": ({"base_model": "b", "model": "STUDENT"}, "is no adapter, and --base_model is the base of one"),
    "a folder's revision": ({"model": "STUDENT", "model_revision": "main"}, "--model_revision is of a Hub model"),
    "ears on a model that sees": ({"model": "TEACHER"}, "takes no audio"),
    "eyes on a model that hears": (
        {"model": "STUDENT", "modality": "audio_video", "media_dir": "CLIPS"},
        "takes no video; give a model that does",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_meant_is_one_error(name, benchmarks, student_checkpoint, teacher_checkpoint, tiny_world, tmp_path):
    changed, message = REFUSED[name]
    known = {"STUDENT": student_checkpoint, "TEACHER": teacher_checkpoint, "CLIPS": tiny_world / "clips"}
    flags = {"dataset": benchmarks["avqa"], "model": "tiny", "output_dir": tmp_path / "run"}
    flags |= {flag: known.get(value, value) if isinstance(value, str) else value for flag, value in changed.items()}
    with pytest.raises(InputError, match=message):
        run(**flags)


def test_a_model_without_a_chat_template_is_refused_and_its_folder_can_be_used(
    benchmarks, teacher_checkpoint, tiny_world, tmp_path
):
    mute = shutil.copytree(teacher_checkpoint, tmp_path / "mute")
    (mute / "chat_template.jinja").unlink()
    flags = {"dataset": benchmarks["avqa"], "output_dir": tmp_path / "run", "max_tokens": 2, "limit": 1}
    flags |= {"modality": "video", "media_dir": tiny_world / "clips"}
    with pytest.raises(InputError, match=f"{mute} has no chat template.*put its chat_template.jinja there"):
        run(**flags, model=mute)
    assert not (tmp_path / "run").exists()
    run(**flags, model=teacher_checkpoint)
    assert read(tmp_path / "run")[1][0]["finish_reason"] in ("length", "stop")


@pytest.fixture(scope="module")
def adapter(student_checkpoint, tmp_path_factory) -> Path:
    """A LoRA on the tiny student that changes what it says; beside it, the two merged."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

    from sightsound.training.checkpoints import save_adapter, save_checkpoint

    folder = tmp_path_factory.mktemp("lora")
    processor = AutoProcessor.from_pretrained(student_checkpoint)
    base = Qwen2AudioForConditionalGeneration.from_pretrained(student_checkpoint)
    torch.manual_seed(0)
    targets = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=16, target_modules=targets, init_lora_weights=False))
    save_adapter(model, processor, folder / "adapter")
    save_checkpoint(model.merge_and_unload(), processor, folder / "model")
    return folder / "adapter"


def change(adapter: Path, folder: Path, **changed: Any) -> Path:
    shutil.copytree(adapter, folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))
    return folder


def test_an_adapter_says_what_it_says_merged_into_the_base_that_it_names(benchmarks, adapter, student_checkpoint, tmp_path):
    flags = {"dataset": benchmarks["avqa"], "max_tokens": 12}
    moved = change(adapter, tmp_path / "moved", base_model_name_or_path="/no/longer/there")
    models = {"base": student_checkpoint, "merged": adapter.parent / "model", "adapter": adapter, "moved": moved}
    said = {}
    for name, model in models.items():
        given = {"base_model": student_checkpoint} if name == "moved" else {}
        run(**flags, **given, model=model, output_dir=tmp_path / "runs" / name)
        _, predictions = read(tmp_path / "runs" / name)
        said[name] = [p["output"] for p in predictions]
    assert said["adapter"] == said["moved"] == said["merged"] != said["base"]
    _, predictions = read(tmp_path / "runs" / "adapter")
    output = f"{fingerprint(adapter)} on {student_checkpoint.name} {fingerprint(student_checkpoint)}"
    assert {p["model_revision"] for p in predictions} == {output}


def test_an_adapter_for_another_base_is_one_error(benchmarks, adapter, student_checkpoint, teacher_checkpoint, tmp_path):
    flags = {"dataset": benchmarks["avqa"], "output_dir": tmp_path / "run"}
    with pytest.raises(InputError, match=f"is a LoRA on {student_checkpoint}, and not on {teacher_checkpoint}"):
        run(**flags, model=adapter, base_model=teacher_checkpoint)
    gone = change(adapter, tmp_path / "gone", base_model_name_or_path="/no/longer/there")
    with pytest.raises(InputError, match="is a LoRA on /no/longer/there, which is not there; give its base with --base_model"):
        run(**flags, model=gone)
    for model in (adapter, gone):
        with pytest.raises(InputError, match="--base_model typo: there is no such folder, and it is no Hub id of a model"):
            run(**flags, model=model, base_model="typo")
    for name, config in (("ranks", {"r": 8}), ("places", {"target_modules": "nothing"})):
        with pytest.raises(InputError, match=r"LoRA (of|for) another model"):
            run(**flags, model=change(adapter, tmp_path / name, **config))
