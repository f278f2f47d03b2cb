"""
Every family in the real vLLM (`make test-slow` installs it): greedy answers, rollouts after updates, adapters.

The student has a family's real processor and random weights, so chaotic that any difference in what vLLM computes shows.
"""

import contextlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from trl import GRPOConfig

from sightsound.engines.transformers import TransformersEngine
from tests.support import served
from tests.support.tiny import REPO
from tests.support.vllm_families import GREEDY, NUM_CLIPS, requests


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not served.PYTHON.exists(), reason=f"no vLLM at {served.PYTHON}; run `make setup-vllm`"),
]

FAMILIES = ("qwen2_5_omni", "audio_flamingo_3")
# Their checkpoints are served; GRPO cannot sample with vLLM.
ONLY_SERVED = ("qwen3_omni",)
BOUND = 1e-4


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    folder = tmp_path_factory.mktemp("students")
    models = {family: served.build_student(family, folder / family) for family in (*FAMILIES, *ONLY_SERVED)}
    adapters = {family: served.build_adapter(models[family], folder / f"{family}-adapter") for family in FAMILIES}
    trained = {family: {"model": models[family], "adapter": adapters[family]} for family in FAMILIES}
    return trained | {family: {"model": models[family]} for family in ONLY_SERVED}


@pytest.fixture(scope="module")
def found(students: dict[str, dict[str, Path]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The output of `tests/support/vllm_families.py`."""
    folder = tmp_path_factory.mktemp("families")
    given = {family: {name: str(path) for name, path in paths.items()} for family, paths in students.items()}
    output, log = folder / "found.json", folder / "log"
    with contextlib.ExitStack() as stack:
        for family in FAMILIES:
            port = served.free_port()
            args = GRPOConfig(output_dir=str(folder), bf16=False, use_cpu=True, vllm_server_port=port)
            server = served.serving_rollouts(students[family]["model"], args, folder / f"{family}.log")
            given[family]["url"] = stack.enter_context(server).url
        done = subprocess.run(
            [str(served.PYTHON), "-m", "tests.support.vllm_families", str(output), json.dumps(given)],
            env=served.training_environment(),
            cwd=REPO,
            stdout=stack.enter_context(open(log, "w")),
            stderr=subprocess.STDOUT,
            check=False,
        )
    assert done.returncode == 0, log.read_text()[-3000:]
    return json.loads(output.read_text())


def texts_here(model: Path) -> list[str]:
    """What the model says in this process, asked in batches of clips of unequal lengths."""
    engine, asked = TransformersEngine.load(str(model), 4, GREEDY), requests()
    batches = [asked[i : i + 4] for i in range(0, NUM_CLIPS, 4)]
    return [result.completions[0].text for batch in batches for part in engine.complete(batch, GREEDY) for result in part]


@pytest.mark.parametrize("family", [*FAMILIES, *ONLY_SERVED])
def test_vllm_answers_as_transformers(students, found, family):
    """Of clips below and above 30 s; of `FAMILIES` with weights that came name by name from training."""
    here = texts_here(students[family]["model"])
    assert found[family]["texts"] == here and len(set(here)) > NUM_CLIPS // 2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("what", ["full", "lora"])
def test_the_engine_has_the_weights_of_every_update(found, family, what):
    assert max(found[family][what]) < BOUND and len(found[family][what]) == 3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("control", ["no_sync", "no_tower"])
def test_weights_that_were_not_updated_would_be_noticed(found, family, control):
    """With none of them, and with all but those of the audio tower."""
    first, *updated = found[family][control]
    assert first < BOUND < min(updated)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_server_has_the_weights_of_every_update(found, family):
    first, *updated = found[family]["server_no_sync"]
    assert first < BOUND < min(updated)
    assert max(found[family]["server_full"]) < BOUND and len(found[family]["server_full"]) == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_the_engine_uses_the_clip_of_each_prompt(found, family):
    """With clips exchanged, its log-probabilities differ from those of the model that is trained."""
    assert min(found[family]["other_clip"]) > 100 * BOUND


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_is_served_and_not_silently_ignored(students, found, family):
    here = texts_here(students[family]["adapter"])
    assert found[family]["texts_with_adapter"] == here
    assert here != found[family]["texts"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_vllm_that_lacks_the_model_is_refused_before_it_starts(found, family):
    served_model, another = found[family]["refusals"]
    assert served_model is None
    assert re.fullmatch(r"use_vllm: true: vLLM \S+ has no FormerModel, which \S+ is; install a version .*", another)
