"""What SFT leaves behind: the same after a kill, on the Hub without a pickle, and answering alike in transformers and vLLM."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from sightsound.data.audio import decode_audio
from sightsound.method.prompts import DIRECT_PROMPT, question_text, user_message
from tests.support import served, tiny
from tests.support.loopback_hub import client_environment, loopback_hub
from tests.support.recipes import ACCELERATE, MINIATURE
from tests.support.trainers import sft_trainer


pytestmark = pytest.mark.slow

__all__ = ["loopback_hub"]

STEPS = 40  # enough for four answers to be learnt by heart


def sft_command(dataset: Path, student: Path | str, output: Path, **flags: Any) -> list[str]:
    given = {"config": MINIATURE / "sft_label.yaml", "selection": "ground_truth", "audio": dataset, "output_dir": output}
    given |= {"model_name_or_path": student, "per_device_train_batch_size": 4, "lora_dropout": 0.1, "logging_steps": 3}
    given |= {"max_steps": 8, "save_steps": 2, "save_total_limit": 2, "eval_strategy": "steps", "eval_steps": 2, **flags}
    given |= {"num_validation": 4, "validation_max_tokens": 8, "load_best_model_at_end": "true"}
    given |= {"metric_for_best_model": "eval_accuracy"}
    return [*ACCELERATE, "recipes/sft.py", *(str(part) for name, value in given.items() for part in (f"--{name}", value))]


def run(command: list[str], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, cwd=tiny.REPO, env=environment or tiny._environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def whole_run(tiny_dataset, student_checkpoint, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("sft") / "run"
    message = run(sft_command(tiny_dataset, student_checkpoint, output))
    assert "LoRA: 21 modules of the language model, 0 of the audio tower" in message
    return output


def log(run: Path) -> list[dict[str, Any]]:
    """What was logged, but for how long it took, and for the sum of losses that this process saw."""
    entries = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [{k: v for k, v in entry.items() if not k.startswith("train_")} for entry in entries]


def test_a_killed_run_goes_on_with_the_same_command(whole_run, tiny_dataset, student_checkpoint, tmp_path) -> None:
    command = sft_command(tiny_dataset, student_checkpoint, tmp_path / "run")
    kills = 0
    for step in (2, 6):
        state = tmp_path / "run" / f"checkpoint-{step}" / "trainer_state.json"
        with subprocess.Popen(
            command,
            cwd=tiny.REPO,
            env=tiny._environment(),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            while process.poll() is None and not state.exists():
                time.sleep(0.002)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # accelerate, and what it has started
                kills += 1
    assert kills > 0 and not (tmp_path / "run" / "model").exists()
    run(command)
    for name in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        one, other = load_file(whole_run / name), load_file(tmp_path / "run" / name)
        assert one.keys() == other.keys() and all((one[key] == other[key]).all() for key in one)
    assert log(whole_run) == log(tmp_path / "run")


def test_a_checkpoint_of_another_model_is_refused_before_training(
    whole_run, tiny_dataset, student_checkpoint, tmp_path
) -> None:
    other = tiny.build_checkpoint("student", tmp_path / "other")  # of the same shape: its place tells them apart
    asked = {"resume_from_checkpoint": whole_run / "checkpoint-8"}
    command = sft_command(tiny_dataset, other, tmp_path / "run", **asked)
    done = subprocess.run(command, cwd=tiny.REPO, env=tiny._environment(), capture_output=True, text=True, check=False)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    message = f"checkpoint-8 is a LoRA on {student_checkpoint}, and not on {other}; give the model that it was trained on"
    # accelerate's own code, which is 1; our line stands once more below its traceback
    assert done.returncode != 0 and len(set(errors)) == 1 and message in errors[0]
    assert not list((tmp_path / "run").glob("checkpoint-*"))


LOAD = """
import sys
from transformers import AutoModelForMultimodalLM, AutoProcessor
from peft import PeftModel
AutoProcessor.from_pretrained("alice/student-adapter")
base = AutoModelForMultimodalLM.from_pretrained("alice/base")
model = PeftModel.from_pretrained(base, "alice/student-adapter").merge_and_unload()
merged = AutoModelForMultimodalLM.from_pretrained("alice/student").state_dict()
apart = max((merged[name] - weight).abs().max().item() for name, weight in model.state_dict().items())
print("apart", apart)
"""
PUBLISH_BASE = """
import sys
from pathlib import Path
from sightsound.hub.publish import publish_model
publish_model(Path(sys.argv[1]), "alice/base", False)
"""


def test_model_and_adapter_are_published_without_a_pickle_and_load_by_their_ids(
    loopback_hub, tiny_dataset, student_checkpoint, tmp_path
) -> None:
    (tmp_path / "home").mkdir()
    environment = {**client_environment(loopback_hub, tmp_path / "home"), "USE_TORCH": "1", "TOKENIZERS_PARALLELISM": "false"}
    shutil.copytree(student_checkpoint, tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text("# A base\n")
    run([sys.executable, "-c", PUBLISH_BASE, str(tmp_path / "base")], environment)
    flags = {"max_steps": 2, "push_to_hub": "true", "hub_model_id": "alice/student"}
    message = run(sft_command(tiny_dataset, "alice/base", tmp_path / "run", **flags), environment)
    assert "published: alice/student, revision" in message and "published: alice/student-adapter, revision" in message
    for name, config in (("student", "config.json"), ("student-adapter", "adapter_config.json")):
        tree = loopback_hub.repos[f"models/alice/{name}"].tree()
        assert {config, "README.md", "tokenizer.json"} <= tree.keys()
        assert not [path for path in tree if path.endswith((".bin", ".pt", ".pth", ".pkl"))]
        card = loopback_hub.content(tree["README.md"]).decode()
        assert (
            "base_model: alice/base" in card
            and "*annotated* answers" in card
            and "the best by accuracy on 4 validation" in card
        )
    apart = float(run([sys.executable, "-c", LOAD], environment).split("apart ")[1])
    assert apart < 1e-6
    assert "is complete" in run(sft_command(tiny_dataset, "alice/base", tmp_path / "run", **flags), environment)


@pytest.fixture(scope="module")
def heard(tiny_dataset, questions, tmp_path_factory) -> dict[str, Any]:
    """A student that vLLM can serve, after SFT: its folder, requests, and what transformers answers."""
    import torch
    from peft import PeftModel
    from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration, set_seed

    from sightsound.training.distributed import save_trained

    folder = tmp_path_factory.mktemp("vllm-lora")
    set_seed(0)
    base = served.save_with_ends(*served.load_pretrain().make_student(), folder / "base")
    trainer = sft_trainer(base, questions, folder / "run", max_steps=STEPS)
    trainer.train()
    save_trained(trainer, folder)
    processor = AutoProcessor.from_pretrained(base)
    texts = [question_text(row["question"], row["choices"], DIRECT_PROMPT) for row in questions]
    prompts = [
        processor.apply_chat_template(user_message(t, "audio"), add_generation_prompt=True, tokenize=False) for t in texts
    ]
    clips = [decode_audio(row["audio"]).waveform for row in questions]
    np.savez(folder / "requests.npz", prompts=np.array(json.dumps(prompts)), **{str(i): c for i, c in enumerate(clips)})

    def answers(model: torch.nn.Module) -> list[list[int]]:
        message = []
        for prompt, clip in zip(prompts, clips, strict=True):
            inputs = processor(text=[prompt], audio=[clip], sampling_rate=16_000, return_tensors="pt")
            audio_token = [model.config.audio_token_id]
            output = model.eval().generate(**inputs, max_new_tokens=16, do_sample=False, suppress_tokens=audio_token)
            message.append(output[0, inputs["input_ids"].shape[1] :].tolist())
        return message

    def load(path: Path) -> Any:
        return Qwen2AudioForConditionalGeneration.from_pretrained(path)

    answered = {"base": answers(load(base)), "merged": answers(load(folder / "model"))}
    answered["adapter"] = answers(PeftModel.from_pretrained(load(base), str(folder / "adapter")))
    return {"folder": folder, "path": base, **answered}


@pytest.mark.skipif(not served.PYTHON.exists(), reason=f"no vLLM at {served.PYTHON}; run `make setup-vllm`")
def test_adapter_and_merged_model_answer_alike_in_transformers_and_vllm(heard) -> None:
    assert heard["adapter"] == heard["merged"] != heard["base"]
    assert len({tuple(answer) for answer in heard["merged"]}) > 2, "answers depend on what is asked"
    folder = heard["folder"]
    environment = {**os.environ, **served.ENVIRONMENT, "PYTHONPATH": str(tiny.REPO), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}

    def in_vllm(model: Path, *adapter: Path) -> dict[str, Any]:
        command = [served.PYTHON, "-m", "tests.support.vllm_lora", folder / "requests.npz", model, *adapter]
        return json.loads(run([str(part) for part in command], environment).splitlines()[-1])

    message = in_vllm(heard["path"], folder / "adapter")
    assert message["adapter"] == heard["adapter"] and message["model"] == heard["base"]
    assert in_vllm(folder / "model")["model"] == heard["merged"]
    assert json.loads((folder / "model" / "config.json").read_text())["tie_word_embeddings"] is False
