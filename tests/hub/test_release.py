"""The release: one commit with weights and figures, what is refused, what users load back from the Hub, and the collection."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from trl import SFTConfig

from evaluation import publish
from evaluation.scoring.accuracy import NO_CONTROL
from sightsound.cli import InputError
from sightsound.data.audio import decode_audio
from sightsound.hub.cards import provenance
from sightsound.method.prompts import DIRECT_PROMPT, question_text
from sightsound.stage import STAGE_FILE
from sightsound.training.recipe import take_publication
from tests.support.card_rules import validate
from tests.support.clients import Done, run_client
from tests.support.hub_routes import TOKEN
from tests.support.loopback_hub import LoopbackHub, Request, client, client_environment, loopback_hub, process_arguments
from tests.support.release import LORA, REPO_ID, corpus, evaluate, mmau, model, released, runs


__all__ = ["corpus", "loopback_hub", "mmau", "model", "released", "runs"]  # the fixtures


def test_runs_that_are_not_results_of_this_checkpoint_are_refused(
    model, runs, tiny_dataset, student_checkpoint, tmp_path
) -> None:
    with pytest.raises(InputError, match=r"another checkpoint than .*a copied or edited folder counts as another one"):
        publish.read_runs([str(runs / "avqa")], student_checkpoint)
    part = evaluate(model, tmp_path / "part", [f"avqa={tiny_dataset}"], limit=2)
    with pytest.raises(InputError, match="the first 2 questions of avqa; a figure on a part is not the benchmark's"):
        publish.read_runs([str(part)], model)
    with pytest.raises(InputError, match="both answer avqa, asked as audio/direct; give one of them"):
        publish.read_runs([str(runs), str(runs / "avqa")], model)
    with pytest.raises(InputError, match="nothing is no folder; give the --output_dir of a finished"):
        publish.read_runs([str(tmp_path / "nothing")], model)
    shutil.copytree(runs, tmp_path / "half")
    (tmp_path / "half" / "mmau" / "results.json").unlink()  # as a run leaves it that was interrupted in its second benchmark
    stage = json.loads((tmp_path / "half" / "mmau" / STAGE_FILE).read_text())
    (tmp_path / "half" / "mmau" / STAGE_FILE).write_text(json.dumps(stage | {"complete": False}))
    with pytest.raises(InputError, match="half/mmau is not complete; rerun its evaluation first"):
        publish.read_runs([str(tmp_path / "half")], model)


def test_models_that_nobody_could_load_or_read_about_are_refused(model, tmp_path, monkeypatch) -> None:
    with pytest.raises(InputError, match=r"holds no README\.md; give the `model/` or `adapter/`"):
        publish.check_model(tmp_path)
    (tmp_path / "README.md").write_text("# Mine\n")
    for base in (str(model), "/gone/sft/model", "../sft/model", "outputs/sft/model", "./model"):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        with pytest.raises(InputError, match="no model of the Hub, so nobody else could load it; publish `model/` instead"):
            publish.check_model(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "alice/base"}))
    with pytest.raises(InputError, match=rf'^{tmp_path}/README.md has no section "## Results".*; add a line .* there$'):
        publish.check_model(tmp_path)
    (tmp_path / "README.md").write_text("# Mine\n\n## Results\n")
    publish.check_model(tmp_path)
    (tmp_path / "alice" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no model of the Hub"):
        publish.check_model(tmp_path)
    (tmp_path / "grpo").mkdir()
    (tmp_path / "grpo" / "README.md").write_text("# Training\n")
    (tmp_path / "grpo" / "model").symlink_to(model)
    with pytest.raises(InputError, match=rf"did you mean {tmp_path}/grpo/model\?$"):
        publish.check_model(tmp_path / "grpo")
    with pytest.raises(InputError, match="--push_to_hub is missing; give"):
        publish.main(["--model", str(model), "--runs", "x"])


def test_a_token_gets_into_no_card(monkeypatch) -> None:
    with pytest.raises(InputError, match="hub_token can be read by other users"):
        take_publication(SFTConfig(hub_token=TOKEN, use_cpu=True, bf16=False))
    monkeypatch.setattr(sys, "argv", ["sft.py", f"--hub_token={TOKEN}", "--hf_home", "hf_home/of/mine"])
    assert provenance()["command"] == "python sft.py --hub_token=hf_... --hf_home hf_home/of/mine"


def test_no_command_says_where_folders_are(monkeypatch) -> None:
    given = ["--audio", "/home/me/avqa-audio", "--model=/home/me/sft/model", "mmau=/data/mmau", "--lr=1e-4", "--base", "a/b"]
    monkeypatch.setattr(sys, "argv", ["sft.py", *given])
    message = "python sft.py --audio avqa-audio --model=sft/model mmau=mmau --lr=1e-4 --base a/b"
    assert provenance()["command"] == message


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
from sightsound.hub import pull_request, retries
from sightsound.cli import run
retries.FIRST_DELAY_S, pull_request.UPLOAD_BATCH = 0.005, 4
run(main)
"""
PUBLISH_FOLDER = """
import sys
from pathlib import Path
from sightsound.hub.publish import publish_model
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
    assert "about to commit a data file" not in done.stderr
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
    message = [done.stdout, done.stderr, *seen, *(content.decode(errors="replace") for content in held.values()), card]
    assert any(REPO_ID in arguments for arguments in seen) and not any(TOKEN in text for text in message)


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

    from sightsound.method.prompts import user_message
    from sightsound.training.checkpoints import save_adapter

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

    text = question_text(questions[0]["question"], questions[0]["choices"], DIRECT_PROMPT)
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
    message = [(item["type"], item["id"]) for item in collection.items]
    assert message == [("dataset", "alice/traces"), ("model", "alice/student"), ("model", "alice/verifier")]
