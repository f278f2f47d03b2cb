"""`recipes/videos/run.sh`: the commands from videos alone to an evaluated student. The programs are stubs."""

import json
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoProcessor

from dataset_builders.cot_corpus import CotCorpusArguments
from dataset_builders.mmau import MmauArguments
from dataset_builders.questions import QuestionsArguments
from dataset_builders.traces import TracesArguments
from dataset_builders.verdicts import VerdictsArguments
from evaluation.report import ReportArguments
from evaluation.running.arguments import RunArguments
from sightsound.building.videos_dataset import VideosArguments
from sightsound.cli import parse_arguments
from sightsound.data.parquet import open_dataset
from sightsound.training.audio_rows import audio_rows
from sightsound.training.collator import CompletionCollator
from tests.support.openai_server import Ask, OpenAIServer
from tests.support.run_sh import calls_of, run_script
from tests.support.students import RECIPES, STUDENTS, recipe_parser
from tests.support.tiny import REPO, read_ledger
from tests.support.videos import MOVING, write_video


SCRIPT = RECIPES / "videos" / "run.sh"
BUILDERS = {
    "videos": VideosArguments,
    "questions": QuestionsArguments,
    "mmau": MmauArguments,
    "traces": TracesArguments,
    "verdicts": VerdictsArguments,
    "cot_corpus": CotCorpusArguments,
}
TEACHER, CHECKER = "Qwen/Qwen2.5-VL-32B-Instruct", "Qwen/Qwen2.5-Omni-7B"
ELSEWHERE = {"TEACHER_BASE_URL": "http://t:1/v1", "CHECKER_BASE_URL": "http://c:2/v1"}
LINE = ["videos", "questions", "traces", "verdicts", "cot_corpus", "sft", "grpo"]


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Any:
    return recipe_parser(monkeypatch)


def parsed(calls: list[list[str]], parse: Any) -> list[tuple[str, Any]]:
    """Name and arguments of every program of the project that was run; each must take its arguments."""
    found: list[tuple[str, Any]] = []
    for program, *arguments in calls:
        if program == "python" and arguments[:2] == ["-m", "evaluation"]:
            kind = {"run": RunArguments, "report": ReportArguments}[arguments[2]]
            found.append((arguments[2], parse_arguments(kind, None, arguments[3:])))
        elif program == "python" and arguments[0] != "-m":
            assert (REPO / arguments[0]).is_file()
            name = Path(arguments[0]).stem
            found.append((name, parse_arguments(BUILDERS[name], None, arguments[1:])))
        elif program == "accelerate":
            at = next(i for i, part in enumerate(arguments) if part.startswith("recipes/"))
            assert (REPO / arguments[2]).is_file()
            name = Path(arguments[at]).stem
            found.append((name, parse(name, *arguments[at + 1 :])))
    return found


@pytest.mark.parametrize("student", STUDENTS)
def test_the_line_goes_from_videos_to_a_student_of_every_family(student, parse, tmp_path) -> None:
    environment = {"STUDENT": student, "HELD_OUT": "others", "MMAU": "mmau", "VIDEO_FLAGS": "--segments_per_video 6"}
    environment |= {"SFT_STEPS": "20", "GRPO_STEPS": "10", "QUESTION_FLAGS": "--questions_per_segment 2"}
    calls = calls_of(tmp_path, SCRIPT, **environment)
    steps = parsed(calls, parse)
    held_out = ["videos", "questions", "mmau"]
    assert [name for name, _ in steps] == [*LINE[:2], *held_out, *LINE[2:], *["run"] * 6, "report"]
    (videos, other_videos), (questions, others) = ([args for name, args in steps if name == each] for each in LINE[:2])
    assert (videos.source, videos.segments_per_video, other_videos.source) == ("videos", 6, "others")
    assert (questions.dataset, questions.media_dir) == ("out/segments", "out/segments/segments")
    assert questions.questions_per_segment == 2
    assert (others.dataset, others.output_dir) == ("out/segments-held_out", "out/questions-held_out")
    by_name = dict(steps)
    traces, verdicts, corpus = by_name["traces"], by_name["verdicts"], by_name["cot_corpus"]
    assert {traces.dataset, verdicts.dataset, corpus.dataset} == {questions.output_dir}, "never the held-out ones"
    assert (traces.media_dir, traces.num_traces) == ("out/segments/segments", 8)
    for name, contribution, count in (("sft", None, 20), ("grpo", "strong", 10)):
        script, training, _ = by_name[name]
        assert (script.selection, script.audio_contribution) == ("tts_agfv", contribution), "SFT may use all, GRPO the strong"
        assert (script.audio, script.traces, training.max_steps) == ("out/questions", "out/corpus", count)
        assert training.eval_strategy == "no" and not training.load_best_model_at_end, "there is no validation split"
        assert training.output_dir == f"out/{student}/{name}-tts_agfv"
    assert by_name["grpo"][2].model_name_or_path == f"out/{student}/sft-tts_agfv/model"
    runs = [args for name, args in steps if name == "run"]
    assert {(run.arm, run.benchmark) for run in runs} == {
        (arm, benchmark) for arm in ("base-zero_shot_cot", "sft-tts_agfv", "grpo-tts_agfv") for benchmark in ("avqa", "mmau")
    }
    assert {(run.dataset[0], run.split and run.split[0]) for run in runs} == {
        ("out/questions-held_out", "train"), ("out/mmau", None),
    }  # fmt: skip
    assert by_name["report"].runs == [run.output_dir for run in runs]


def test_what_has_no_address_is_served_and_the_questions_have_both_servers(tmp_path) -> None:
    calls = calls_of(tmp_path, SCRIPT)
    served = [call[2] for call in calls if call[:2] == ["vllm", "serve"]]
    assert served == [CHECKER, TEACHER, TEACHER, CHECKER, "out/qwen2_audio_7b/sft-tts_agfv/model"]
    questions, traces, verdicts = (
        next(call for call in calls if f"dataset_builders/{name}.py" in call) for name in ("questions", "traces", "verdicts")
    )
    args = parse_arguments(QuestionsArguments, None, questions[2:])
    assert (args.model, args.base_url) == (TEACHER, ["http://127.0.0.1:8001/v1"])
    assert (args.answerer, args.answerer_base_url) == (CHECKER, ["http://127.0.0.1:8002/v1"])
    assert parse_arguments(TracesArguments, None, traces[2:]).base_url == ["http://127.0.0.1:8001/v1"]
    assert parse_arguments(VerdictsArguments, None, verdicts[2:]).base_url == ["http://127.0.0.1:8002/v1"]
    sizes = [call[call.index("--tensor-parallel-size") + 1] for call in calls if call[:2] == ["vllm", "serve"]]
    assert sizes == ["4", "4", "8", "4", "2"]


def test_models_elsewhere_are_looked_up_first_and_not_served(tmp_path) -> None:
    answerers = {"ANSWERER": "omni", "ANSWERER_BASE_URL": "http://a:3/v1"}
    answerers |= {"TEXT_ANSWERER": "text", "TEXT_ANSWERER_BASE_URL": "http://x:4/v1"}
    calls = calls_of(tmp_path, SCRIPT, **ELSEWHERE, CHECKER="gpt-audio-1.5", **answerers)
    models = [call[call.index("--model") + 1] for call in calls[:2] if "sightsound.engines.openai_models" in call]
    assert models == [TEACHER, "gpt-audio-1.5"]
    assert [call[2] for call in calls if call[0] == "vllm"] == ["out/qwen2_audio_7b/sft-tts_agfv/model"], "GRPO's own"
    (questions,) = [parse_arguments(QuestionsArguments, None, c[2:]) for c in calls if "dataset_builders/questions.py" in c]
    questions.check()
    assert (questions.answerer, questions.text_answerer) == ("omni", "text")
    assert questions.base_url == [ELSEWHERE["TEACHER_BASE_URL"]]
    assert questions.answerer_base_url == ["http://a:3/v1"] and questions.text_answerer_base_url == ["http://x:4/v1"]
    (verdicts,) = [parse_arguments(VerdictsArguments, None, c[2:]) for c in calls if "dataset_builders/verdicts.py" in c]
    assert (verdicts.checker, verdicts.base_url) == ("gpt-audio-1.5", [ELSEWHERE["CHECKER_BASE_URL"]])


def test_without_a_benchmark_it_says_that_nothing_was_evaluated(parse, tmp_path) -> None:
    done = run_script(SCRIPT, tmp_path, **ELSEWHERE)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "out/qwen2_audio_7b/grpo-tts_agfv/model is trained, and not evaluated: give HELD_OUT, MMAU or MUSIC_AVQA, and run this "
        "again\n"
    )
    calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    assert [name for name, _ in parsed(calls, parse)] == LINE


def test_complete_stages_need_no_server(parse, tmp_path) -> None:
    out = tmp_path / "out"
    for name in ("questions", "traces", "verdicts", "qwen2_audio_7b/grpo-tts_agfv"):
        (out / name).mkdir(parents=True)
        (out / name / "stage.json").write_text('{"complete": true}')
    calls = calls_of(tmp_path, SCRIPT, OUTPUT=str(out))
    assert not any(call[0] in ("vllm", "curl") for call in calls)
    assert [name for name, _ in parsed(calls, parse)] == ["videos", "cot_corpus", "sft"]


def test_a_student_without_recipes_and_no_videos_are_refused(tmp_path) -> None:
    for name in ("qwen", "miniature", "videos"):
        done = run_script(SCRIPT, tmp_path, STUDENT=name)
        expected = f"error: STUDENT={name} is no folder of recipes/ with a README.md; expected one of: {' '.join(STUDENTS)}\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)
    done = run_script(SCRIPT, tmp_path, VIDEOS="")
    assert done.returncode != 0 and "VIDEOS: folder of videos, or hf://datasets/ORG/NAME" in done.stderr
    assert not (tmp_path / "calls").exists()


def teacher_and_checker(ask: Ask) -> list[str]:
    """
    The teacher writes two questions about each segment. One of them is guessed in six of ten tries without the clip. Its traces
    agree on the first choice in alphabetical order, and the checker accepts all of them.
    """
    if ask.video is not None and "JSON" in ask.text:
        word = "".join("bcdfghklmn"[int(digit)] + "a" for digit in str(ask.seed % 100_000))  # another one for each segment
        shared = {"type": "which", "answer": "dog"}
        written = [
            shared | {"question": f"Is {name} heard near a {word}?", "choices": ["dog", name, word, "wind"]}
            for name in ("a bell", "a siren")
        ]
        return [json.dumps({"questions": written})]
    if ask.audio is not None and ask.audio.any():
        return ["yes"]
    choices = dict(re.findall(r"^([A-D])\. (.+)$", ask.text, re.MULTILINE))
    right = next(letter for letter, choice in choices.items() if choice == "dog")
    if ask.video is not None:
        return [f"<think>I hear a dog, {i} times.</think><answer>{choices[right]}</answer>" for i in range(ask.n)]
    is_guessed = "a bell" in choices.values() and ask.seed % 10 < 6
    return [f"<answer>{right if is_guessed else 'ABCD'['BCDA'.index(right)]}</answer>"]


@pytest.mark.slow
def test_the_builders_of_the_line_make_a_corpus_of_strong_and_weak_questions(tmp_path, student_checkpoint, capsys) -> None:
    for i in range(2):
        write_video(tmp_path / "videos" / f"v{i}.mp4", seed=i, parts=((12.0, True, MOVING),))
    with OpenAIServer(teacher_and_checker) as server:
        urls = {"TEACHER_BASE_URL": server.base_url, "CHECKER_BASE_URL": server.base_url}
        given = {"VIDEOS": str(tmp_path / "videos"), "VIDEO_FLAGS": "--segment_s 3"}
        given |= {"QUESTION_FLAGS": "--questions_per_segment 2 --max_guessed 0.75", "OUTPUT": str(tmp_path / "out")}
        done = run_script(SCRIPT, tmp_path, real_builders=True, **urls, **given)
        assert done.returncode == 0, done.stderr
        num_asked = len(server.asked)
        again = run_script(SCRIPT, tmp_path, real_builders=True, **urls, **given)
        assert again.returncode == 0 and len(server.asked) == num_asked, "complete stages are skipped"
    corpus = open_dataset(str(tmp_path / "out" / "corpus"), "train", "traces")
    words = Counter(row["audio_contribution"] for row in corpus)
    outcomes = Counter(entry["outcome"] for entry in read_ledger(tmp_path / "out" / "questions") if entry["kind"] == "question")
    assert outcomes == {"built": len(corpus), "answerable_without_clip": 16 - len(corpus)}
    assert words["strong"] >= 8 and words["weak"] >= 3, words
    collator = CompletionCollator(AutoProcessor.from_pretrained(student_checkpoint))
    shared = {"audio": str(tmp_path / "out" / "questions"), "traces": str(tmp_path / "out" / "corpus"), "split": "train"}
    for wanted, count in ((None, len(corpus)), ("strong", words["strong"]), ("weak", words["weak"])):
        args = SimpleNamespace(**shared, selection="tts_agfv", audio_contribution=wanted)
        assert len(audio_rows(args, collator, tmp_path / "ledger.parquet", for_grpo=True)) == count
