"""Prompts shared by their completions: scores, gradients, weights and samples equal those of separate rows."""

import logging
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, PreTrainedModel, Qwen2AudioForConditionalGeneration

from sightsound.models.family import ClipFeatures, StudentFamily
from sightsound.models.qwen2_audio import FAMILY
from sightsound.training.grpo import AudioGRPOTrainer
from sightsound.training.sharing.attention import PACKED
from sightsound.training.sharing.packing import regroup, supports_custom_masks
from sightsound.training.sharing.sampling import GroupDecoder, shared_sampling
from tests.support.trainers import make_rows, make_trainer


@pytest.fixture(scope="module")
def rows(questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return make_rows(questions)


@pytest.fixture(scope="module")
def trainer(student_checkpoint, rows, tmp_path_factory) -> AudioGRPOTrainer:
    return make_trainer(student_checkpoint, rows, tmp_path_factory.mktemp("trainer"))


@pytest.fixture(scope="module")
def clips(trainer, rows) -> list[ClipFeatures]:
    return trainer._read_audio([row["audio"] for row in rows])


def prompt_of(model: PreTrainedModel, words: Sequence[int]) -> list[int]:
    return [*words[:2], *[model.config.audio_token_id] * 25, *words[2:]]


def left_padded(prompts: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


# The prompt and the clip of each row: groups that are not adjacent, prompts of unequal lengths, one prompt about
# two clips, one group of a single row.
WORDS = ([5, 6, 7, 8], [5, 6, 9, 10, 11, 12, 13], [5, 6, 7])
ROWS = [(0, 0), (1, 1), (0, 0), (2, 2), (0, 3), (1, 1), (0, 3), (0, 0)]
WRITTEN = [6, 1, 3, 4, 0, 6, 2, 5]  # tokens of each completion; one is empty


def make_batch(trainer: AudioGRPOTrainer, clips: list[ClipFeatures]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, their mask and the mask of the completions of `ROWS`; sets the clips of the rows in the trainer."""
    prompt_ids, prompt_mask = left_padded([prompt_of(trainer.model, WORDS[prompt]) for prompt, _ in ROWS])
    completions = torch.randint(20, 60, (len(ROWS), max(WRITTEN)), generator=torch.Generator().manual_seed(0))
    written = (torch.arange(max(WRITTEN)) < torch.tensor(WRITTEN)[:, None]).long()
    trainer._audio = [clips[clip] for _, clip in ROWS]
    return torch.cat([prompt_ids, completions], dim=1), torch.cat([prompt_mask, written], dim=1), written


@pytest.mark.parametrize("attention", [PACKED, "sdpa", "eager"])
@pytest.mark.parametrize("batch_size", [None, 3])
def test_log_probs_entropies_and_gradients_are_those_of_separate_rows(trainer, clips, monkeypatch, attention, batch_size):
    trainer.model.config.text_config._attn_implementation = attention
    ids, mask, written = make_batch(trainer, clips)
    weights = torch.linspace(-1, 1, written.numel()).view_as(written) * written
    seen = {}
    for is_shared in (False, True):
        monkeypatch.setattr(trainer, "share_prompts", is_shared)
        logps, entropies, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, written.shape[1], batch_size, compute_entropy=True
        )
        trainer.model.zero_grad()
        (logps * weights).sum().backward()
        gradients = {name: weight.grad for name, weight in trainer.model.named_parameters() if weight.grad is not None}
        seen[is_shared] = (logps[written.bool()], entropies[written.bool()], gradients)
    trainer.model.config.text_config._attn_implementation = PACKED
    for apart, shared in zip(seen[False][:2], seen[True][:2], strict=True):
        assert (apart - shared).abs().max() < 1e-5
    assert seen[False][2].keys() == seen[True][2].keys()
    for name, gradient in seen[False][2].items():
        assert (gradient - seen[True][2][name]).abs().max() <= 1e-5 * gradient.abs().max(), name


def test_only_empty_completions_can_be_scored(trainer, clips):
    ids, mask, written = make_batch(trainer, clips)
    mask[:, -written.shape[1] :] = 0
    logps, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, written.shape[1])
    assert logps.shape == written.shape and logps.isfinite().all()


@pytest.mark.parametrize(
    "changed",
    [
        {"loss_type": "grpo", "num_iterations": 2},
        {"loss_type": "dr_grpo", "gradient_checkpointing": True},
        {"loss_type": "dapo", "steps_per_generation": 4},
    ],
    ids=lambda changed: changed["loss_type"],
)
def test_optimizer_steps_give_the_same_weights(student_checkpoint, rows, tmp_path, changed):
    weights, losses = {}, {}
    for is_shared in (False, True):
        trainer = make_trainer(student_checkpoint, rows, tmp_path, learning_rate=1e-4, **changed)
        trainer.share_prompts = is_shared
        trainer.train()
        weights[is_shared] = dict(trainer.model.named_parameters())
        losses[is_shared] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses[True]) == 2 and losses[True] == pytest.approx(losses[False], abs=1e-5)
    for name, weight in weights[False].items():
        assert (weight - weights[True][name]).abs().max() < 1e-5, name


END_IDS = list(range(100, 160))  # a tenth of the vocabulary: most completions end before the others


def sample(model: Any, clips: list[ClipFeatures], is_shared: bool, **settings: Any) -> list[list[int]]:
    """Completions of `ROWS` up to their ends."""
    ids, mask = left_padded([prompt_of(model, WORDS[prompt]) for prompt, _ in ROWS])
    rows = [clips[clip] for _, clip in ROWS]
    config = GenerationConfig(max_new_tokens=16, eos_token_id=END_IDS, pad_token_id=0, **settings)
    inputs = {"input_ids": ids, "attention_mask": mask, **FAMILY.stack_features(rows), "generation_config": config}
    torch.manual_seed(0)
    with torch.no_grad():
        if is_shared:
            with shared_sampling(model, rows, END_IDS):
                written = model.generate(**inputs)
        else:
            written = model.generate(**inputs)
    completions = written[:, ids.shape[1] :].tolist()
    ends = [next((at for at, token in enumerate(row) if token in END_IDS), len(row)) for row in completions]
    return [row[: end + 1] for row, end in zip(completions, ends, strict=True)]


@pytest.mark.parametrize("settings", [{"do_sample": True, "temperature": 1.3}, {"do_sample": False}], ids=["drawn", "greedy"])
def test_samples_are_those_of_separate_rows(student_checkpoint, clips, settings):
    model = Qwen2AudioForConditionalGeneration.from_pretrained(student_checkpoint)
    apart, shared = (sample(model, clips, is_shared, **settings) for is_shared in (False, True))
    assert apart == shared
    assert apart == sample(model, clips, False, **settings)  # the model's forward is its own again
    if settings["do_sample"]:
        assert len({len(row) for row in apart}) > 2


def test_an_adapter_is_used_in_sampling(student_checkpoint, clips):
    model = Qwen2AudioForConditionalGeneration.from_pretrained(student_checkpoint)
    plain = sample(model, clips, True, do_sample=True)
    lora = LoraConfig(target_modules=r".*language_model\.layers\.\d+\.self_attn\.q_proj", init_lora_weights=False)
    adapted = get_peft_model(model, lora)
    adapted.config = model.config
    assert plain != sample(adapted, clips, False, do_sample=True) == sample(adapted, clips, True, do_sample=True)


def test_a_prompt_is_computed_once_and_ended_completions_leave(student_checkpoint, clips):
    model = Qwen2AudioForConditionalGeneration.from_pretrained(student_checkpoint)
    computed: list[torch.Size] = []
    model.model.language_model.register_forward_pre_hook(
        lambda _, __, inputs: computed.append(inputs["inputs_embeds"].shape[:2]), with_kwargs=True
    )
    lengths = list(map(len, sample(model, clips, True, do_sample=True)))
    longest = max(len(prompt_of(model, words)) for words in WORDS)
    assert computed[0] == (4, longest - 1)  # three prompts, one of them about two clips
    groups = [[0, 2, 7], [1, 5], [3], [4, 6]]
    widths = [max(sum(lengths[row] > step for row in group) for group in groups) for step in range(max(lengths))]
    assert [shape[1] for shape in computed[1:]] == widths and widths[0] == 3 > widths[-1]


def test_sampling_goes_on_after_the_last_end_where_processes_wait_for_each_other(student_checkpoint, clips):
    model = Qwen2AudioForConditionalGeneration.from_pretrained(student_checkpoint)
    ids, mask = left_padded([prompt_of(model, WORDS[0])] * 2)
    decoder = GroupDecoder(model, clips[:1] * 2, END_IDS)
    with torch.no_grad():
        decoder(input_ids=ids, attention_mask=mask)
        for _ in range(2):
            logits = decoder(input_ids=torch.tensor([[END_IDS[0]], [END_IDS[0]]])).logits
    assert logits.shape == (2, 1, model.config.text_config.vocab_size) and logits.isfinite().all()


def test_regrouping_keeps_rows_whole_and_groups_together():
    clips = [ClipFeatures((torch.zeros(1), torch.zeros(1))) for _ in range(3)]
    owners = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]
    batches = [
        {
            "prompt_ids": torch.tensor([[owner] for owner in owners[part]]),
            "audio": [clips[owner] for owner in owners[part]],
            "advantages": torch.tensor([float(row) for row in range(12)][part]),
            "num_items_in_batch": torch.tensor(12),
        }
        for part in (slice(0, 4), slice(4, 8), slice(8, 12))
    ]
    regrouped = regroup(batches)
    assert [len(set(batch["prompt_ids"].flatten().tolist())) for batch in regrouped] == [1, 1, 1]
    assert sorted(int(row) for batch in regrouped for row in batch["advantages"]) == list(range(12))
    for batch in regrouped:
        assert int(batch["num_items_in_batch"]) == 12
        for clip, prompt, row in zip(batch["audio"], batch["prompt_ids"], batch["advantages"], strict=True):
            assert clip is clips[int(prompt)] and owners[int(row)] == int(prompt)


def test_an_attention_without_masks_falls_back_with_one_warning(student_checkpoint, rows, tmp_path, monkeypatch, caplog):
    model = Qwen2AudioForConditionalGeneration.from_pretrained(student_checkpoint)
    assert supports_custom_masks(model)
    model.config.text_config._attn_implementation = "flash_attention_2"
    assert not supports_custom_masks(model)
    # The kernel is not installed where these tests run; the test is about what the trainer does without it.
    monkeypatch.setattr("sightsound.training.grpo.supports_custom_masks", lambda _: False)
    with caplog.at_level(logging.WARNING, "sightsound"):
        trainer = make_trainer(student_checkpoint, rows, tmp_path)
    assert not trainer.share_prompts
    assert len([record for record in caplog.records if "computed again for every completion" in record.message]) == 1


def test_a_family_whose_prompts_cannot_be_shared_falls_back_with_one_warning(
    student_checkpoint, rows, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(StudentFamily, "shares_prompts", False)
    with caplog.at_level(logging.WARNING, "sightsound"):
        trainer = make_trainer(student_checkpoint, rows, tmp_path)
    assert not trainer.share_prompts
    warnings = [record.message for record in caplog.records if "cannot share it" in record.message]
    assert len(warnings) == 1 and "a Qwen2AudioForConditionalGeneration cannot" in warnings[0]
