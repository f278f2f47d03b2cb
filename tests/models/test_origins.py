"""What the licence of a base forbids, from its name, from the run that trained it, or from the card beside it."""

from pathlib import Path

import pytest

from sightsound.models.family import Licence
from sightsound.models.origins import base_licence, card_of, origin_on_hub, restriction_notice, served_window_s
from sightsound.stage import Stage


OMNI_3B, FLAMINGO = "Qwen/Qwen2.5-Omni-3B", "nvidia/audio-flamingo-3-hf"


def trained_from(base: str, folder: Path) -> Path:
    with Stage(folder, {"model_name_or_path": base}):
        (folder / "model").mkdir()
    return folder / "model"


def with_card(folder: Path, front: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "README.md").write_text(f"---\n{front}\n---\n\n# A model\n")
    return folder


def test_a_released_model_is_known_by_its_id() -> None:
    found = restriction_notice(OMNI_3B)
    assert found.startswith("licence of Qwen/Qwen2.5-Omni-3B: qwen-research (https://huggingface.co/Qwen/Qwen2.5-Omni-3B/blob/")
    assert found.endswith("LICENSE): research and evaluation only, no commercial use; it holds for what is trained from it")
    assert restriction_notice("Qwen/Qwen2-Audio-7B-Instruct") is None
    assert restriction_notice("somebody/unknown") is None and base_licence("somebody/unknown") is None


def test_what_recipes_trained_from_a_model_has_its_licence(tmp_path) -> None:
    first = trained_from(FLAMINGO, tmp_path / "sft")
    assert origin_on_hub(str(first)) == FLAMINGO
    assert "sft/model (trained from nvidia/audio-flamingo-3-hf): nvidia-oneway-noncommercial" in restriction_notice(str(first))
    # A second recipe records a fingerprint of the first one's result; the card that it writes names the Hub's model.
    second = trained_from("0123456789abcdef", tmp_path / "grpo")
    assert base_licence(str(second)) is None
    with_card(second, f"base_model: {FLAMINGO}\nlicense: other\nlicense_name: x\ntags: [sightsound-r1]")
    assert base_licence(str(second)) == base_licence(FLAMINGO)


@pytest.mark.parametrize(
    ("front", "expected"),
    [
        ("license: apache-2.0", Licence("apache-2.0")),
        ("license: other\nlicense_name: qwen-research\nlicense_link: LICENSE", base_licence(OMNI_3B)),
        ("license: cc-by-nc-4.0", Licence("cc-by-nc-4.0", restriction="no commercial use, by its name: read it")),
        ("license: other\nlicense_name: My Licence\nlicense_link: LICENSE", Licence("other", "my-licence")),
        ("license: mit\nbase_model: nvidia/audio-flamingo-3-hf", Licence("mit")),
        ("license: other", None),
        ("license: other\nlicense_name: that-of-the-base-model", None),
        ("license: [mit, apache-2.0]", None),
        ("tags: []", None),
        ("license: {", None),
    ],
)
def test_a_download_has_the_licence_of_its_card(front, expected, tmp_path) -> None:
    assert base_licence(str(with_card(tmp_path / "download", front))) == expected


def test_a_folder_without_a_card_has_no_licence_that_is_known(tmp_path) -> None:
    assert card_of(str(tmp_path)) == {} and base_licence(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("# A model\n")
    assert card_of(str(tmp_path)) == {} and restriction_notice(str(tmp_path)) is None


def test_a_served_model_has_the_window_of_its_release(tmp_path) -> None:
    """A server does not say it: what would be cut at 30 s need not be."""
    from sightsound.engines.openai import OpenAIEngine

    names = {OMNI_3B: 300, FLAMINGO: 600, "Qwen/Qwen2-Audio-7B-Instruct": 30, "student": 30, "gpt-audio": 30}
    names[str(trained_from(OMNI_3B, tmp_path / "sft"))] = 300
    assert {name: served_window_s(name) for name in names} == names
    assert OpenAIEngine(OMNI_3B, "http://localhost:1/v1", concurrency=1).window_s == 300
