"""What SFT of each family says of its licence, before training and on the cards, and the cards' own lines load the weights."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import get_peft_model_state_dict
from safetensors.torch import load_file

from sightsound.stage import Stage
from tests.support import tiny
from tests.support.card_rules import FRONT, validate
from tests.support.families import build_family


# The families' released model that the tiny one stands for, and the class and window that its cards have to name.
CASES = {
    "qwen2_audio": ("Qwen/Qwen2-Audio-7B-Instruct", "Qwen2AudioForConditionalGeneration", 2),
    "qwen2_5_omni": ("Qwen/Qwen2.5-Omni-3B", "Qwen2_5OmniThinkerForConditionalGeneration", 300),
}
NOTICE = "licence of base/model (trained from Qwen/Qwen2.5-Omni-3B): qwen-research (https://huggingface.co/"
SNIPPET = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("family", CASES)
def test_cards_state_the_licence_and_load_the_weights(family, tiny_dataset, tmp_path, monkeypatch, capsys) -> None:
    origin, loader, window_s = CASES[family]
    with Stage(tmp_path / "base", {"model_name_or_path": origin}) as stage:
        build_family(family, tmp_path / "base" / "model")
        stage.finish()
    monkeypatch.chdir(tmp_path)  # cards name folders without the path above them
    train(tiny_dataset, monkeypatch)
    message = capsys.readouterr().out
    assert (NOTICE in message) == (family == "qwen2_5_omni")
    assert NOTICE not in message or message.index(NOTICE) < message.index("LoRA: "), "before anything is loaded"
    loaded = {name: load_as_the_card_says(tmp_path / "run" / name) for name in ("model", "adapter")}
    for name in loaded:
        card = (tmp_path / "run" / name / "README.md").read_text()
        assert validate(card, "model") == ([], [])
        front = yaml.safe_load(FRONT.match(card)[1])
        assert front["base_model"] == origin
        assert f"import AutoProcessor, {loader}\n" in card and f"of up to {window_s} seconds" in card
        assert f"window ({window_s} s)" in card and "AutoModelForMultimodalLM" not in card
        if family == "qwen2_5_omni":
            assert (front["license"], front["license_name"]) == ("other", "qwen-research")
            assert front["license_link"].startswith("https://huggingface.co/Qwen/Qwen2.5-Omni-3B/")
            assert "**Restricted use.** The licence of its base model, [qwen-research](https://" in card.split("## ")[0]
        else:
            assert front["license"] == "apache-2.0" and "license_name" not in front and "Restricted use" not in card
    saved = load_file("run/adapter/adapter_model.safetensors")
    found = get_peft_model_state_dict(loaded["adapter"])
    assert found.keys() == saved.keys() and all((found[name] == weight).all() for name, weight in saved.items())
    assert any(weight.any() for name, weight in saved.items() if "lora_B" in name), "it was trained"
    merged, model = loaded["adapter"].merge_and_unload().state_dict(), loaded["model"].state_dict()
    assert merged.keys() == model.keys()
    assert max((merged[name] - weight).abs().max().item() for name, weight in model.items()) < 1e-6


def train(dataset: Path, patch: pytest.MonkeyPatch) -> None:
    """Two steps of `recipes/sft.py`, in this process."""
    patch.syspath_prepend(str(tiny.REPO / "recipes"))
    import sft

    given = {"config": tiny.REPO / "recipes" / "miniature" / "sft_label.yaml", "selection": "ground_truth", "audio": dataset}
    given |= {"model_name_or_path": "base/model", "output_dir": "run", "max_steps": 2, "per_device_train_batch_size": 2}
    patch.setattr(sys, "argv", ["sft.py", *(str(part) for name, value in given.items() for part in (f"--{name}", value))])
    sft.main()


def load_as_the_card_says(folder: Path) -> Any:
    """Run the card's lines, with the folder for the published id."""
    lines = SNIPPET.search((folder / "README.md").read_text())[1]
    variables: dict[str, Any] = {}
    exec(re.sub("PATH_OR_ID_OF_THIS_(?:MODEL|ADAPTER)", str(folder), lines), variables)
    assert variables["processor"].tokenizer is not None
    return variables["model"]
