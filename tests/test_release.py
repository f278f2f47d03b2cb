"""The release: cards from what stages leave, one commit with weights and figures, and what users load back from the Hub."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from transformers import TrainerState
from trl import ModelConfig, SFTConfig

from evaluation import generate, publish
from evaluation.scoring import NO_CONTROL
from sightsound import schema
from sightsound.cli import InputError
from sightsound.hub import write_dataset_card
from sightsound.journal import STAGE_FILE, Stage, fingerprint
from sightsound.media import decode_audio
from sightsound.model_card import write_student_card
from sightsound.prompts import DIRECT_INSTRUCTION, LETTERS, question_text
from sightsound.publishing import provenance
from sightsound.recipe import take_publication
from tests.support import tiny
from tests.support.card_rules import validate
from tests.support.hub_routes import TOKEN
from tests.support.loopback_hub import LoopbackHub, Request, client, client_environment, loopback_hub, process_arguments
from tests.support.openai_server import OpenAIServer
from tests.test_hub import Done, run_client


__all__ = ["loopback_hub"]  # the fixture

REPO_ID = "alice/student"
MMAU = {"task": "sound", "difficulty": "easy", "category": "Reasoning", "sub_category": "x", "source_dataset": "y"}
LORA = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
BEST = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}
FRONT = re.compile(r"\A---\n(.*?)---\n", re.DOTALL)


def write_card(folder: Path, stage: str, audio: Path, traces: Path | None, base: str, selection: str, **changed: Any) -> str:
    """The card that a recipe writes, from the objects that a recipe has."""
    settings = {"output_dir": str(folder.parent), "use_cpu": True, "bf16": False, "report_to": "none", **changed}
    script = {"audio": str(audio), "traces": traces and str(traces), "selection": selection, "split": "train"}
    state = TrainerState(global_step=8, best_global_step=6, best_metric=0.75, log_history=[{"train_runtime": 90.0, "step": 8}])
    write_student_card(
        folder,
        stage,
        SimpleNamespace(**script, num_validation=4),
        SFTConfig(**settings),
        ModelConfig(model_name_or_path=base, use_peft=True, lora_target_modules=[LORA]),
        state,
        None,
    )
    return (folder / "README.md").read_text()


def make_stage(folder: Path, checkpoint: Path, audio: Path, corpus: Path, base: str, **changed: Any) -> Path:
    """What a recipe leaves: `model/` with its card, and all that a publisher has no business with."""
    settings = {"audio": fingerprint(audio), "validation_split": "validation", "load_best_model_at_end": False, **changed}
    with Stage(folder, settings | {"model_name_or_path": base}) as stage:
        shutil.copytree(checkpoint, folder / "model")
        used = [{"id": row["id"], "outcome": "used", "detail": None} for row in tiny.read_rows(audio)]
        schema.write_ledger([*used[1:], {**used[0], "outcome": "too_long"}], folder / "ledger.parquet")
        (folder / "model" / "training_args.bin").write_bytes(b"a pickle")
        (folder / "model" / ".env").write_text(f"HF_TOKEN={TOKEN}\n")
        write_card(folder / "model", "SFT", audio, corpus, base, "tts_agfv", **(BEST if changed else {}))
        stage.finish()
    return folder / "model"


@pytest.fixture(scope="module")
def corpus(questions, tmp_path_factory) -> Path:
    return tiny.write_corpus(questions, tmp_path_factory.mktemp("corpus") / "traces")


@pytest.fixture(scope="module")
def model(student_checkpoint, tiny_dataset, corpus, tmp_path_factory) -> Path:
    return make_stage(tmp_path_factory.mktemp("sft") / "run", student_checkpoint, tiny_dataset, corpus, "alice/base")


@pytest.fixture(scope="module")
def mmau(questions, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark") / "mmau"
    rows = [question | MMAU for question in questions[:3]]
    schema.write_parquet(rows, schema.mmau_features(), folder / "data" / "test-00000-of-00001.parquet")
    write_dataset_card(folder, "# MMAU\n", {"default": {"test": "data/*.parquet"}})
    return folder


def evaluate(model: Path | str, output: Path, dataset: list[str], **flags: Any) -> Path:
    """`python -m evaluation run`, in this process."""
    given = {"model": model, "output_dir": output, "max_tokens": 4, **flags}
    names = ",".join(value.partition("=")[0] for value in dataset)
    generate.main(["--benchmark", names, "--dataset", *dataset, *(str(p) for k, v in given.items() for p in (f"--{k}", v))])
    return output


@pytest.fixture(scope="module")
def runs(model, tiny_dataset, mmau, tmp_path_factory) -> Path:
    """A run of the model over two benchmarks; one of them has an official protocol."""
    return evaluate(model, tmp_path_factory.mktemp("runs") / "run", [f"avqa={tiny_dataset}", f"mmau={mmau}"])


@pytest.fixture(scope="module")
def released(model, runs, tmp_path_factory) -> Path:
    """The folder as the repository will be."""
    folder = tmp_path_factory.mktemp("release") / "release"
    publish.assemble(model, publish.read_runs([str(runs)], model), REPO_ID, folder)
    return folder


def front_of(card: str) -> dict[str, Any]:
    return yaml.safe_load(FRONT.match(card)[1])


# Cards


@pytest.mark.parametrize(
    ("stage", "selection", "is_adapter"),
    [("SFT", "tts_agfv", False), ("SFT", "tts_agfv", True), ("GRPO", "tts_agfv", False), ("SFT", "ground_truth", False)],
)
def test_a_students_card_says_what_it_is_and_where_its_data_went(
    stage, selection, is_adapter, tiny_dataset, corpus, tmp_path
) -> None:
    folder = tmp_path / "run" / "weights"
    folder.mkdir(parents=True)
    if is_adapter:
        (folder / "adapter_config.json").write_text("{}")
    ids = [row["id"] for row in tiny.read_rows(tiny_dataset)]
    outcomes = [("used", row_id) for row_id in ids[2:]] * 2 + [("too_long", ids[0]), ("missing_audio", ids[1])]
    ledger = [{"id": row_id, "outcome": outcome, "detail": None} for outcome, row_id in outcomes]
    schema.write_ledger(ledger, tmp_path / "run" / "ledger.parquet")
    traces = None if selection == "ground_truth" else corpus
    card = write_card(folder, stage, tiny_dataset, traces, "Qwen/Qwen2-Audio-7B-Instruct", selection)
    assert validate(card, "model") == ([], [])
    front = front_of(card)
    assert front["base_model"] == "Qwen/Qwen2-Audio-7B-Instruct" and front["license"] == "apache-2.0"
    assert front["base_model_relation"] == ("adapter" if is_adapter else "finetune")
    assert front["library_name"] == ("peft" if is_adapter else "transformers")
    steps = ["asked", "answered by the teacher", "unanimous", "accepted"] if traces else []
    funnel = [f"| {step} | 12 |" for step in [*steps, f"selected: arm `{selection}`"]] + ["| used in training | 10 |"]
    assert "\n".join(funnel) in card and "20 rows were trained on; left out: 1 too_long, 1 missing_audio." in card
    assert "| carbon emissions | not measured |" in card and "| training time | 1.5 min since the last start |" in card
    assert "CPU, 1 process |" in card and "None were published" in card and "arXiv:2509.15661" in card
    assert ("The teacher cannot hear" in card) == (selection != "ground_truth")
    assert "They chose the checkpoint" not in card and str(tmp_path) not in FRONT.sub("", card).split("## How it was built")[0]
    assert not re.search(r"\bNone\b(?! were)|{{|{%|\n\n\n", card), card


def test_a_checkpoint_that_validation_chose_says_so_in_its_card_and_results(
    student_checkpoint, tiny_dataset, corpus, mmau, tmp_path
) -> None:
    folder = tmp_path / "chosen"
    model = make_stage(folder, student_checkpoint, tiny_dataset, corpus, "alice/base", load_best_model_at_end=True)
    card = (model / "README.md").read_text()
    assert "The weights are those of step 6, the best by accuracy on 4 validation\nquestions: 75.0 %. They chose the" in card
    evaluate(model, tmp_path / "run", [f"avqa={tiny_dataset}", f"mmau={mmau}"])
    publish.assemble(model, publish.read_runs([str(tmp_path / "run")], model), REPO_ID, tmp_path / "release")
    card = (tmp_path / "release" / "README.md").read_text()
    assert "chosen by its accuracy on questions of the same split of\navqa." in card
    told = {result.dataset_name: result.metric_name for result in ModelCard(card).data.eval_results}
    assert "was chosen on questions of this split" in told["avqa"] and "chosen" not in told["mmau"]


def test_a_checkpoint_of_a_checkpoint_names_the_model_of_the_hub_behind_it(model, tiny_dataset, corpus, tmp_path) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    schema.write_ledger([{"id": "1", "outcome": "used", "detail": None}], tmp_path / "run" / "ledger.parquet")
    card = write_card(tmp_path / "run" / "model", "GRPO", tiny_dataset, corpus, str(model), "tts_agfv")
    assert front_of(card)["base_model"] == "alice/base" and "`run/model` after GRPO" in card
    assert front_of(card)["license"] == "other" and validate(card, "model") == ([], [])


def check_figures(card: str, runs: Path) -> list[float]:
    """Every place says what `results.json` says; returns the accuracies."""
    assert validate(card, "model") == ([], [])
    expected = []
    for name in ("avqa", "mmau"):
        results = json.loads((runs / name / "results.json").read_text())
        protocols = {"paper": results["results"][NO_CONTROL]}
        protocols |= {"official": results["official"][NO_CONTROL]} if "official" in results else {}
        for protocol, figures in protocols.items():
            value, low, high, unanswered = (round(figures[key], 2) for key in ("accuracy", "low", "high", "unanswered"))
            expected.append((name, protocol, value))
            assert f"| {name} | audio/direct | {protocol} | {value} [{low}, {high}] | {unanswered} | {figures['n']} |" in card
        assert f"revision `{results['benchmark_revision']}`" in card
    found = ModelCard(card).data.eval_results
    protocols_found = [re.search(r": (\w+) protocol", result.metric_name)[1] for result in found]
    assert [(r.dataset_name, p, r.metric_value) for r, p in zip(found, protocols_found, strict=True)] == expected
    return [value for *_, value in expected]


def test_card_and_index_say_the_figures_of_the_results(released, model, runs) -> None:
    card = (released / "README.md").read_text()
    check_figures(card, runs)
    assert card.count("## Results") == 1 and "None were published" not in card
    assert "Not tested for deafness: avqa (audio/direct), mmau (audio/direct). Run with" in card and "answers to" not in card
    assert f'from_pretrained("{REPO_ID}")' in card and "PATH_OR_ID" not in card
    assert not list((released / ".eval_results").iterdir()), "their questions came from folders"
    assert publish.write_card(card, publish.read_runs([str(runs)], model), REPO_ID) == card, "written once more, it is the same"


def test_answers_of_a_server_are_said_to_be_that(model, tiny_dataset, questions, mmau, tmp_path) -> None:
    letter = LETTERS[questions[0]["answer"]]
    with OpenAIServer(lambda ask: [f"<answer>{letter}</answer>"] * ask.n) as server:
        evaluate("tiny", tmp_path / "run", [f"avqa={tiny_dataset}", f"mmau={mmau}"], base_url=server.base_url)
    publish.assemble(model, publish.read_runs([str(tmp_path / "run")], model), REPO_ID, tmp_path / "release")
    card = (tmp_path / "release" / "README.md").read_text()
    _, paper, official = check_figures(card, tmp_path / "run")
    assert paper > 0 == official, "a letter is an answer to one protocol and not to the other"
    assert "The answers to mmau (audio/direct) came from a server, which called the model `tiny`" in card


def test_results_on_a_dataset_of_the_hub_are_in_eval_results_with_its_revision(model, runs) -> None:
    commit = "0123456789" * 4
    run = publish.read_run(runs / "mmau", model)
    settings = run.settings | {"dataset": "alice/mmau"}
    run = replace(run, results=run.results | {"settings": settings, "benchmark_revision": commit})
    from huggingface_hub import eval_result_entries_to_yaml

    entries = parse_eval_result_entries(yaml.safe_load(yaml.safe_dump(eval_result_entries_to_yaml(run.entries(REPO_ID)))))
    assert [(e.dataset_id, e.task_id, e.dataset_revision) for e in entries] == [
        ("alice/mmau", "mmau_paper", commit),
        ("alice/mmau", "mmau_official", commit),
    ]
    indexed = [(each.dataset_type, each.dataset_revision, each.metric_value) for each in run.model_index()]
    assert indexed == [("alice/mmau", commit, entry.value) for entry in entries]
    assert entries[0].source_url.endswith("/alice/student/blob/main/predictions/mmau-audio-direct.parquet")
    assert "95 % interval [" in entries[0].notes and "n = 3" in entries[0].notes


# What is refused


def test_runs_that_are_not_results_of_this_checkpoint_are_refused(
    model, runs, tiny_dataset, student_checkpoint, tmp_path
) -> None:
    with pytest.raises(InputError, match="answers of another checkpoint than"):
        publish.read_run(runs / "avqa", student_checkpoint)
    part = evaluate(model, tmp_path / "part", [f"avqa={tiny_dataset}"], limit=2)
    with pytest.raises(InputError, match="the first 2 questions of avqa; a figure on a part is not the benchmark's"):
        publish.read_run(part, model)
    with pytest.raises(InputError, match="both answer avqa, asked as audio/direct; give one of them"):
        publish.read_runs([str(runs), str(runs / "avqa")], model)
    with pytest.raises(InputError, match="holds no finished run"):
        publish.read_runs([str(tmp_path / "nothing")], model)
    shutil.copytree(runs / "avqa", tmp_path / "half")
    stage = json.loads((tmp_path / "half" / STAGE_FILE).read_text())
    (tmp_path / "half" / STAGE_FILE).write_text(json.dumps(stage | {"complete": False}))
    with pytest.raises(InputError, match="holds no finished run"):
        publish.read_runs([str(tmp_path / "half")], model)


def test_models_that_nobody_could_load_or_read_about_are_refused(model, tmp_path) -> None:
    with pytest.raises(InputError, match=r"holds no README\.md; give the `model/` or `adapter/`"):
        publish.check_model(tmp_path)
    (tmp_path / "README.md").write_text("# Mine\n")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(model)}))
    with pytest.raises(InputError, match="a folder here, which nobody else could load; publish `model/` instead"):
        publish.check_model(tmp_path)
    with pytest.raises(InputError, match='no section "## Results"'):
        publish.write_card("---\ntags: [x]\n---\n# Mine\n", [], REPO_ID)
    with pytest.raises(InputError, match="--push_to_hub: where to"):
        publish.main(["--model", str(model), "--runs", "x"])


def test_a_token_gets_into_no_card(monkeypatch) -> None:
    with pytest.raises(InputError, match="hub_token: others can read it"):
        take_publication(SFTConfig(hub_token=TOKEN, use_cpu=True, bf16=False))
    monkeypatch.setattr(sys, "argv", ["sft.py", f"--hub_token={TOKEN}", "--hf_home", "hf_home/of/mine"])
    assert provenance()["command"] == "python sft.py --hub_token=hf_... --hf_home hf_home/of/mine"


@pytest.mark.parametrize(
    ("front", "error"),
    [
        ("license: mine", '"license" must be'),
        ("base_model: /home/me/model", '"base_model" must be'),
        ("base_model: a/b\nbase_model_relation: child", '"base_model_relation" must be one of adapter'),
        ("co2_eq_emissions: not measured", '"co2_eq_emissions" must be grams'),
        ("model-index: [{name: x, results: [{task: {type: t}, metrics: [{type: a}]}]}]", r"metrics\[0\].value. is required"),
        ("tags: [a", "YAML: "),
    ],
)
def test_the_loopback_hub_refuses_what_the_hub_refuses(front, error) -> None:
    errors, _ = validate(f"---\n{front}\n---\n# Card\n", "model")
    assert errors and any(re.search(error, each) for each in errors)
    assert validate("# Card\n", "model") == ([], ["empty or missing yaml metadata in repo card"])


# On the Hub

# Short delays: the Hub of these tests is back at once.
COMMAND = """
import sys
from evaluation.__main__ import main
from sightsound import hub, retries
from sightsound.cli import run
retries.FIRST_DELAY_S, hub.UPLOAD_BATCH = 0.005, 4
run(main)
"""
PUBLISH_FOLDER = """
import sys
from pathlib import Path
from sightsound.hub import publish_model
print(publish_model(Path(sys.argv[1]), sys.argv[2], False))
"""
PUBLISH_DATASET = PUBLISH_FOLDER.replace("publish_model", "publish_dataset")


def environment_of(hub: LoopbackHub, home: Path) -> dict[str, str]:
    return client_environment(hub, home) | {"USE_TORCH": "1", "TOKENIZERS_PARALLELISM": "false"}


def push(hub: LoopbackHub, model: Path, runs: Path, home: Path) -> Done:
    arguments = ["publish", "--model", model, "--runs", runs, "--push_to_hub", REPO_ID]
    return run_client(COMMAND, arguments, environment_of(hub, home))


def files_of(hub: LoopbackHub, revision: str = "main") -> dict[str, bytes]:
    tree = hub.repos[f"models/{REPO_ID}"].tree(revision)
    return {path: hub.content(entry) for path, entry in tree.items() if path != ".gitattributes"}


def test_weights_card_figures_and_answers_are_one_commit(loopback_hub, model, runs, released, tmp_path) -> None:
    seen: set[str] = set()

    def watch(number: int, moment: str, request: Request) -> None:
        if "commit" in request.path:
            seen.update(process_arguments())

    loopback_hub.watch = watch
    done = push(loopback_hub, model, runs, tmp_path / "home")
    tag = done.tag.split()[-1]
    assert re.fullmatch(r"build-[0-9a-f]{12}", tag)
    held = files_of(loopback_hub, tag)
    assert held == files_of(loopback_hub)
    not_sent = ("training_args.bin", ".env")
    paths = [f.relative_to(released).as_posix() for f in released.rglob("*") if f.is_file() and f.name not in not_sent]
    assert {"model.safetensors", "generation_config.json", "predictions/mmau-audio-direct.parquet"} <= held.keys()
    card = held.pop("README.md").decode().replace(loopback_hub.url, "")
    assert card == (released / "README.md").read_text() and validate(card, "model") == ([], [])
    assert held == {path: (released / path).read_bytes() for path in paths if path != "README.md"}
    repo = loopback_hub.repos[f"models/{REPO_ID}"]
    assert [repo.commits[sha].title for sha in repo.history("main")][1:] == ["initial commit"], "one change of main"
    assert loopback_hub.count("POST", "/api/validate-yaml") == 1
    told = [done.stdout, done.stderr, *seen, *(content.decode(errors="replace") for content in held.values()), card]
    assert any(REPO_ID in arguments for arguments in seen) and not any(TOKEN in text for text in told)


@pytest.mark.slow
def test_a_publication_that_is_killed_leaves_the_old_state_and_the_same_command_ends_it(
    loopback_hub, model, runs, tmp_path
) -> None:
    environment = environment_of(loopback_hub, tmp_path / "home")
    (tmp_path / "home").mkdir()
    old = run_client(PUBLISH_FOLDER, [model, REPO_ID], environment).tag
    before = files_of(loopback_hub)
    assert not any(path.startswith("predictions/") for path in before)
    moments: list[tuple[str, Callable[[Request], bool]]] = [
        ("answered", lambda request: request.method == "PUT"),
        ("answered", lambda request: request.method == "POST" and "/commit/" in request.path),
        ("asked", lambda request: request.path.endswith("/merge")),
    ]
    for moment, chosen in moments:
        arguments = ["publish", "--model", model, "--runs", runs, "--push_to_hub", REPO_ID]
        with client(COMMAND, arguments, environment) as process:

            def watch(number: int, at: str, request: Request, moment=moment, chosen=chosen, process=process) -> None:
                if at == moment and chosen(request):
                    process.kill()

            loopback_hub.watch = watch
            process.communicate()
            loopback_hub.watch = lambda *_: None
        assert process.returncode == -9
        if moment == "answered":
            assert files_of(loopback_hub) == before, "readers have the old state, whole"
    tag = push(loopback_hub, model, runs, tmp_path / "home").tag.split()[-1]
    assert files_of(loopback_hub) == files_of(loopback_hub, tag) and files_of(loopback_hub, old) == before
    assert "predictions/avqa-audio-direct.parquet" in files_of(loopback_hub)
    asked = len(loopback_hub.log)
    again = push(loopback_hub, model, runs, tmp_path / "home")
    assert again.tag.split()[-1] == tag and f"main holds {tag}, and it is tagged" in again.stdout
    writes = [request.path for request in loopback_hub.log[asked:] if request.method not in ("GET", "HEAD")]
    assert writes == ["/api/repos/create"], "nothing to do"


LOAD = """
import json, sys
import numpy, torch
from peft import PeftModel
from transformers import AutoModelForMultimodalLM, AutoProcessor
sources, requests, output = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
given, told = numpy.load(requests), {}
for name, ((model_id, pin), base) in sources.items():
    if base:
        base_id, base_pin = base
        model = PeftModel.from_pretrained(AutoModelForMultimodalLM.from_pretrained(base_id, **base_pin), model_id, **pin)
    else:
        model = AutoModelForMultimodalLM.from_pretrained(model_id, **pin)
    processor = AutoProcessor.from_pretrained(model_id, **pin)
    inputs = processor(text=[str(given["text"])], audio=[given["clip"]], sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        told[f"{name}/logits"] = model.eval()(**inputs).logits.numpy()
        told[f"{name}/ids"] = model.generate(**inputs, max_new_tokens=8, do_sample=False).numpy()
numpy.savez(output, **told)
"""


@pytest.mark.slow
def test_what_is_loaded_from_the_hub_by_its_tag_answers_as_the_folder_does(
    loopback_hub, model, runs, student_checkpoint, questions, tmp_path
) -> None:
    import numpy as np
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForMultimodalLM, AutoProcessor, set_seed

    from sightsound.checkpoints import save_adapter
    from sightsound.prompts import user_message

    home = tmp_path / "home"
    home.mkdir()
    environment = environment_of(loopback_hub, home)
    shutil.copytree(student_checkpoint, tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text("# A base\n")
    base_tag = run_client(PUBLISH_FOLDER, [tmp_path / "base", "alice/base"], environment).tag
    tag = push(loopback_hub, model, runs, home).tag.split()[-1]

    set_seed(1)
    base, processor = AutoModelForMultimodalLM.from_pretrained(student_checkpoint), AutoProcessor.from_pretrained(model)
    lora = LoraConfig(r=4, target_modules=LORA, init_lora_weights=False)
    adapted = get_peft_model(base, lora)
    save_adapter(adapted, processor, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "alice/base"}))
    (tmp_path / "adapter" / "README.md").write_text("# An adapter\n")
    adapter_tag = run_client(PUBLISH_FOLDER, [tmp_path / "adapter", "alice/adapter"], environment).tag

    text = question_text(questions[0]["question"], questions[0]["choices"], DIRECT_INSTRUCTION)
    prompt = processor.apply_chat_template(user_message(text, "audio"), add_generation_prompt=True, tokenize=False)
    np.savez(tmp_path / "request.npz", text=np.array(prompt), clip=decode_audio(questions[0]["audio"]).waveform)

    sources = {
        "model on the Hub": ((REPO_ID, {"revision": tag}), None),
        "model here": ((str(model), {}), None),
        "adapter on the Hub": (("alice/adapter", {"revision": adapter_tag}), ("alice/base", {"revision": base_tag})),
        "adapter here": ((str(tmp_path / "adapter"), {}), (str(student_checkpoint), {})),
    }
    done = run_client(LOAD, [json.dumps(sources), tmp_path / "request.npz", tmp_path / "answers.npz"], environment)
    assert done.code == 0, done.stderr[-3000:]
    answers = np.load(tmp_path / "answers.npz")
    for kind in ("model", "adapter"):
        for part in ("logits", "ids"):
            assert np.array_equal(answers[f"{kind} on the Hub/{part}"], answers[f"{kind} here/{part}"])
    assert not np.array_equal(answers["model here/logits"], answers["adapter here/logits"]), "the adapter does something"


@pytest.mark.slow
def test_figures_on_a_dataset_of_the_hub_are_published_in_eval_results(loopback_hub, model, mmau, tmp_path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = environment_of(loopback_hub, home)
    assert run_client(PUBLISH_DATASET, [mmau, "alice/mmau"], environment).code == 0
    flags = [
        "--benchmark",
        "mmau",
        "--dataset",
        "alice/mmau",
        "--model",
        model,
        "--max_tokens",
        4,
        "--output_dir",
        tmp_path / "run",
    ]
    done = run_client(COMMAND, ["run", *flags], environment)
    assert done.code == 0, done.stderr
    done = push(loopback_hub, model, tmp_path / "run", home)
    tag = done.tag.split()[-1]
    held = files_of(loopback_hub, tag)
    entries = parse_eval_result_entries(yaml.safe_load(held[".eval_results/sightsound-mmau-audio-direct.yaml"]))
    commit = loopback_hub.repos["datasets/alice/mmau"].resolve("main")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    figures = {"mmau_paper": results["results"][NO_CONTROL], "mmau_official": results["official"][NO_CONTROL]}
    assert {entry.task_id: entry.value for entry in entries} == {k: round(v["accuracy"], 2) for k, v in figures.items()}
    assert {(entry.dataset_id, entry.dataset_revision) for entry in entries} == {("alice/mmau", commit)}
    card = held["README.md"].decode()
    indexed = [(each.dataset_type, each.dataset_revision, each.metric_value) for each in ModelCard(card).data.eval_results]
    assert indexed == [("alice/mmau", commit, entry.value) for entry in entries]
    assert validate(card, "model") == ([], []) and f"`alice/mmau`, split `test`, revision `{commit}`" in card


# The collection


def test_a_collection_groups_what_is_there_once(loopback_hub, tmp_path) -> None:
    environment = client_environment(loopback_hub, tmp_path)
    for name in ("datasets/alice/traces", "models/alice/student", "models/alice/verifier"):
        loopback_hub.new_repo(name, private=True)
    flags = ["collect", "--title", "SightSound-R1", "--datasets", "alice/traces", "--private", "--models", "alice/student"]
    done = run_client(COMMAND, flags, environment)
    (collection,) = loopback_hub.collections.values()
    assert done.tag == f"collection: {loopback_hub.url}/collections/{collection.slug}" and collection.private
    missing = run_client(COMMAND, [*flags, "alice/no-such-model"], environment)
    assert missing.code == 2 and missing.stderr.count("\n") == 1 and "alice/no-such-model" in missing.stderr
    assert run_client(COMMAND, [*flags, "alice/verifier"], environment).tag == done.tag
    told = [(item["type"], item["id"]) for item in collection.items]
    assert told == [("dataset", "alice/traces"), ("model", "alice/student"), ("model", "alice/verifier")]
