"""
Every student family, as a tiny random model with its real processor class: what is trained and sampled is what transformers
computes by hand, one row at a time.
"""

import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from peft import get_peft_model
from trl import ModelConfig, SFTConfig

from sightsound.cli import InputError
from sightsound.data import parquet, schema
from sightsound.data.audio import decode_audio, encode_flac
from sightsound.engines.base import Sampling
from sightsound.engines.transformers import TransformersEngine
from sightsound.hub.cards import write_dataset_card
from sightsound.models import voxtral
from sightsound.models.family import family_of_processor, student_families
from sightsound.models.loading import load_audio_processor, load_generator, student_class
from sightsound.training.audio_rows import audio_rows
from sightsound.training.checkpoints import save_adapter, save_checkpoint
from sightsound.training.collator import CompletionCollator
from sightsound.training.grpo import AudioGRPOTrainer
from sightsound.training.recipe import lora_config, model_init_kwargs
from sightsound.training.rollout_buffer import load_buffer, save_buffer
from sightsound.training.sft import AudioSFTTrainer
from sightsound.training.sharing.attention import use_packed_attention
from sightsound.training.sharing.packing import supports_custom_masks
from sightsound.training.sharing.sampling import shared_sampling
from tests.support.families import BUILDERS, RELEASED_NAMES, RELEASED_PREFIXES, build_family
from tests.support.family_cases import COMPLETIONS, QUESTIONS, RATE, ROWS, WINDOW_S, WRITTEN, Case, left_padded
from tests.support.tiny import read_ledger
from tests.support.trainers import make_trainer


@pytest.fixture(scope="module", params=BUILDERS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(voxtral, "LONGEST_CLIP_S", WINDOW_S["voxtral"])
        yield Case(request.param, build_family(request.param, folder / "model"), folder)


def test_the_loss_of_sft_is_that_of_each_row_by_hand(case: Case) -> None:
    batch = CompletionCollator(case.processor)(case.rows)
    loss = case.model(**batch).loss
    tokenizer = case.processor.tokenizer
    targets = [[*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id] for text in COMPLETIONS]
    scores = [case.log_probs(*row) for row in zip(QUESTIONS, case.cells, targets, strict=True)]
    assert loss.item() == pytest.approx(-torch.cat(scores).mean().item(), abs=1e-5)


def test_the_trainer_of_a_lora_starts_from_that_loss(case: Case, tmp_path) -> None:
    """TRL and PEFT call parts of the model of their own choice; a LoRA changes nothing before its first step."""
    arguments = ModelConfig(model_name_or_path=str(case.checkpoint), use_peft=True)
    settings = {"per_device_train_batch_size": 3, "max_steps": 1, "logging_steps": 1, "use_cpu": True, "bf16": False}
    settings |= {"remove_unused_columns": False, "dataset_kwargs": {"skip_prepare_dataset": True}, "report_to": "none"}
    settings["router_aux_loss_coef"] = 0.0  # a mixture of experts has a second loss otherwise
    trainer = AudioSFTTrainer(
        model=student_class(str(case.checkpoint)).from_pretrained(case.checkpoint),
        args=SFTConfig(output_dir=str(tmp_path), save_strategy="no", **settings),
        train_dataset=Dataset.from_list(case.rows),
        processing_class=case.processor,
        data_collator=CompletionCollator(case.processor),
        peft_config=lora_config(arguments),
    )
    trainer.train()
    with torch.no_grad():
        expected = case.model(**CompletionCollator(case.processor)(case.rows)).loss.item()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, abs=1e-5)


def test_the_logits_of_a_batch_of_unequal_clips_are_those_of_each_row_alone(case: Case) -> None:
    collator = CompletionCollator(case.processor)
    batch = collator(case.rows)
    with torch.no_grad():
        together = case.model(**batch).logits
    for row, text, cell, logits, labels in zip(case.rows, QUESTIONS, case.cells, together, batch["labels"], strict=True):
        places = (labels != -100).nonzero()[:, 0]
        alone = case.logits(text, cell, labels[places].tolist())
        assert (logits[places - 1] - alone).abs().max() < 1e-5
        seconds = decode_audio(cell).duration_s
        assert collator.num_tokens(row, seconds) == len(collator([row])["input_ids"][0])


def test_batches_with_rows_without_a_clip(case: Case) -> None:
    """As the verifier has them; the order of the clips is kept."""
    collator = CompletionCollator(case.processor)
    silent = {**case.rows[1], "audio": None}
    assert set(collator([silent])) == {"input_ids", "attention_mask", "labels"}
    mixed, whole = collator([case.rows[0], silent, case.rows[2]]), collator([case.rows[0], case.rows[2]])
    for name in case.family.feature_names:
        assert torch.equal(mixed[name], whole[name])
    first, last = case.num_audio_tokens(whole)
    assert case.num_audio_tokens(mixed) == [first, 0, last]
    with torch.no_grad():
        assert case.model(**mixed).loss.isfinite()


def test_the_engine_answers_a_batch_as_it_answers_each_request_alone(case: Case) -> None:
    greedy = Sampling(1, 0.0, 8, 0)
    engine = TransformersEngine(case.model, case.processor, 8, greedy)
    together = case.ask(engine, (0, 1, 2), greedy)
    alone = [result for i in range(3) for result in case.ask(engine, (i,), greedy)]
    assert [result.completions for result in together] == [result.completions for result in alone]
    assert [result.usage for result in together] == [result.usage for result in alone]
    # Near temperature zero, each of several samples is the greedy one: if it hears its own clip.
    twice = case.ask(engine, (0, 1, 2), Sampling(2, 1e-4, 8, 0))
    assert [result.completions for result in twice] == [result.completions * 2 for result in together]
    drawn = case.ask(engine, (2, 0), Sampling(2, 1.0, 8, 0))
    assert all(len(result.completions) == 2 for result in drawn) and drawn == case.ask(engine, (2, 0), Sampling(2, 1.0, 8, 0))


def test_policy_old_and_reference_log_probs_are_those_of_a_direct_forward(case: Case) -> None:
    trainer = case.trainer
    trainer.model.train()
    owners = [row for row in range(3) for _ in range(4)]
    given = [{**case.rows[row], "teacher_answer": 0, "choices": ["dog", "bell"]} for row in owners]
    batch = trainer._generate_and_score_completions(given)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    length = batch["completion_ids"].shape[1]
    policy, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, length)
    for row, owner in enumerate(owners):
        written = batch["completion_mask"][row].bool()
        completion = batch["completion_ids"][row][written].tolist()
        expected = case.log_probs(QUESTIONS[owner], case.cells[owner], completion)
        for scores in (policy, batch["old_per_token_logps"], batch["ref_per_token_logps"]):
            assert (scores[row][written] - expected).abs().max() < 1e-5
        if row % 4 == 0:
            other = case.log_probs(QUESTIONS[owner], case.cells[owner - 1], completion)
            assert (other - expected).abs().max() > 1e-3


@pytest.fixture
def exact(case: Case) -> Iterator[AudioGRPOTrainer]:
    """The trainer with its model in double precision, so that rounding is no difference between gradients."""
    case.trainer.model.double().set_experts_implementation("eager")  # the default has no double precision
    yield case.trainer
    case.trainer.model.zero_grad()
    case.trainer.model.float()


def test_shared_prompts_give_the_log_probs_and_gradients_of_separate_rows(case: Case, exact, monkeypatch) -> None:
    assert exact.share_prompts
    prompts, features = case.prompts_of_rows()
    for clip in set(features):
        clip.tensors = (clip.tensors[0].double(), *clip.tensors[1:])
    prompt_ids, prompt_mask = left_padded(prompts)
    completions = torch.randint(100, 160, (len(ROWS), max(WRITTEN)), generator=torch.Generator().manual_seed(0))
    written = (torch.arange(max(WRITTEN)) < torch.tensor(WRITTEN)[:, None]).long()
    ids, mask = torch.cat([prompt_ids, completions], dim=1), torch.cat([prompt_mask, written], dim=1)
    weights = torch.linspace(-1, 1, written.numel()).view_as(written) * written
    seen = {}
    for is_shared in (False, True):
        monkeypatch.setattr(exact, "share_prompts", is_shared)
        scores, _, _ = exact._get_per_token_logps_and_entropies(exact.model, ids, mask, written.shape[1])
        exact.model.zero_grad()
        (scores * weights).sum().backward()
        gradients = {name: weight.grad for name, weight in exact.model.named_parameters() if weight.grad is not None}
        seen[is_shared] = scores[written.bool()], gradients
    assert (seen[False][0] - seen[True][0]).abs().max() < 1e-5
    assert seen[False][1].keys() == seen[True][1].keys()
    assert any(name.startswith(case.family.audio_tower) for name in seen[True][1])
    largest = max(gradient.abs().max() for gradient in seen[False][1].values())
    for name, gradient in seen[False][1].items():
        # That of a key's bias is zero, and what is computed is rounding.
        allowed = 1e-5 * max(gradient.abs().max(), 1e-6 * largest)
        assert (gradient - seen[True][1][name]).abs().max() <= allowed, name


def test_no_mask_of_a_packed_row_is_made(case: Case) -> None:
    """It would take memory with the square of the length of all completions."""
    prompt_ids, prompt_mask = left_padded(case.prompts_of_rows()[0])
    ids, mask = (torch.cat([each, torch.ones_like(each[:, :2])], dim=1) for each in (prompt_ids, prompt_mask))
    attention = case.trainer.model.get_submodule(case.family.language_model).layers[0].self_attn
    seen: list[torch.Tensor | None] = []
    hook = attention.register_forward_pre_hook(lambda _, __, named: seen.append(named["attention_mask"]), with_kwargs=True)
    with torch.no_grad():
        case.trainer._get_per_token_logps_and_entropies(case.trainer.model, ids, mask, 2)
    hook.remove()
    assert seen and all(given is None or given.numel() == 1 for given in seen)


def test_shared_sampling_draws_what_separate_rows_draw(case: Case) -> None:
    prompts, features = case.prompts_of_rows()
    ids, mask = left_padded(prompts)
    ends = list(range(100, 160))  # most completions end before the others
    config = transformers.GenerationConfig(max_new_tokens=12, do_sample=True, eos_token_id=ends, pad_token_id=0)
    inputs = {"input_ids": ids, "attention_mask": mask, **case.family.stack_features(features), "generation_config": config}
    model = student_class(str(case.checkpoint)).from_pretrained(case.checkpoint).eval()
    use_packed_attention(model)  # as the trainer does; where nothing is packed, it is sdpa
    drawn = {}
    for is_shared in (False, True):
        torch.manual_seed(0)
        with torch.no_grad(), shared_sampling(model, features, ends) if is_shared else nullcontext():
            output = model.generate(**inputs)
        rows = output[:, ids.shape[1] :].tolist()
        stops = [next((at for at, token in enumerate(row) if token in ends), len(row)) for row in rows]
        drawn[is_shared] = [row[: stop + 1] for row, stop in zip(rows, stops, strict=True)]
    assert drawn[True] == drawn[False] and len({len(row) for row in drawn[True]}) > 2


def test_grpo_trains_and_encodes_each_clip_once(case: Case, tmp_path) -> None:
    """Twelve rows of three clips: sampled, scored under the old policy and the reference, and trained on."""
    rows = [{**row, "teacher_answer": 0, "choices": ["dog", "bell"]} for row in case.rows]
    sizes = {"per_device_train_batch_size": 12, "gradient_accumulation_steps": 1, "max_steps": 1, "num_iterations": 2}
    trainer = make_trainer(case.checkpoint, rows, tmp_path, **sizes)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    log = trainer.state.log_history[0]
    windows = sum(map(case.family.tower_rows, trainer._read_audio(case.cells)))
    assert log["audio_tower/rows_saved"] == 4 * (4 - 1) * windows
    changed = [name for name, weight in trainer.model.named_parameters() if not torch.equal(before[name], weight)]
    assert any(name.startswith(case.family.audio_tower) for name in changed)
    assert not any(name.startswith(case.family.never_trained) for name in changed)


def test_the_rollout_buffer_keeps_clips(case: Case, tmp_path) -> None:
    clips = case.trainer._read_audio([*case.cells, case.cells[0]])
    save_buffer(tmp_path / "buffer.safetensors", 3, [{"ids": torch.arange(4), "audio": clips}])
    step, (batch,) = load_buffer(tmp_path / "buffer.safetensors", torch.device("cpu"))
    assert step == 3 and batch["audio"][0] is batch["audio"][3]
    expected, found = case.family.stack_features(clips), case.family.stack_features(batch["audio"])
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_checkpoint_is_read_back_and_has_the_released_names(case: Case, tmp_path) -> None:
    from safetensors.torch import load_file

    names = {name for file in case.checkpoint.glob("*.safetensors") for name in load_file(file)}
    assert all(name.startswith(RELEASED_PREFIXES[case.name]) for name in names)
    assert not set(RELEASED_NAMES[case.name]) - names
    # That one was made from a config; transformers may save a model that was loaded under other names.
    save_checkpoint(case.model, case.processor, tmp_path / "saved")
    assert {name for file in (tmp_path / "saved").glob("*.safetensors") for name in load_file(file)} == names
    reloaded, processor, _ = load_generator(str(tmp_path / "saved"))
    weights = case.model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in reloaded.state_dict().items())
    batch = CompletionCollator(processor)(case.rows)
    with torch.no_grad():
        assert torch.equal(reloaded.eval()(**batch).logits, case.model(**batch).logits)


def test_lora_is_on_the_language_model_alone(case: Case) -> None:
    arguments = ModelConfig(model_name_or_path=str(case.checkpoint), use_peft=True)
    adapted = get_peft_model(student_class(str(case.checkpoint)).from_pretrained(case.checkpoint), lora_config(arguments))
    found = adapted.base_model.targeted_module_names
    layers = case.direct.config.get_text_config().num_hidden_layers
    assert len(found) >= 4 * layers and all(name.startswith(case.family.language_model + ".layers.") for name in found)
    assert case.family.audio_tower_of(adapted) is adapted.get_base_model().get_submodule(case.family.audio_tower)
    arguments.lora_target_modules = ["q_proj", "k_proj", "v_proj", "o_proj"]
    with pytest.raises(InputError, match="modules outside the language model"):
        lora_config(arguments)


def test_a_saved_lora_is_merged_as_it_was_trained(case: Case, tmp_path) -> None:
    """Some mixtures of experts are changed by PEFT, and the names of an adapter with them."""
    lora = lora_config(ModelConfig(model_name_or_path=str(case.checkpoint), use_peft=True))
    lora.init_lora_weights = False
    adapted = get_peft_model(student_class(str(case.checkpoint)).from_pretrained(case.checkpoint), lora).eval()
    save_adapter(adapted, case.processor, tmp_path / "adapter")
    merged, _, _ = load_generator(str(tmp_path / "adapter"))
    batch = CompletionCollator(case.processor)(case.rows)
    with torch.no_grad():
        trained, read, plain = (model.eval()(**batch).logits for model in (adapted, merged, case.model))
    assert (trained - read).abs().max() < 1e-4 < 1e-2 < (trained - plain).abs().max()


def test_clips_are_cut_at_the_familys_window_and_no_earlier(case: Case) -> None:
    window = case.family.window_s(case.processor)
    assert window == WINDOW_S[case.name]
    lengths = [45.0, 40.0] if window is None else [window, window / 2]
    longest, half = (case.family.clip_features(case.processor, np.zeros(round(s * RATE), np.float32)) for s in lengths)
    per_second = longest.num_tokens / lengths[0]
    assert half.num_tokens == pytest.approx(lengths[1] * per_second, abs=1) and half.num_tokens < longest.num_tokens
    assert family_of_processor(case.processor) is case.family


def test_a_clip_beyond_the_window_is_cut_and_the_ledger_says_so(case: Case, tmp_path) -> None:
    window = case.family.window_s(case.processor)
    beyond_s = (window or 45.0) + 1.5
    hum = np.sin(np.arange(round(beyond_s * RATE)) / 20).astype(np.float32)
    texts = set(schema.avqa_audio_features()) - set(schema.CONTRIBUTION_COLUMNS)
    row = {**dict.fromkeys(texts, ""), "id": "0", "start_s": 0.0, "duration_s": beyond_s, "answer": 0}
    row |= {"audio": {"bytes": encode_flac(hum), "path": None}, "choices": ["hum", "dog"]}
    parquet.write_parquet([row], schema.avqa_audio_features(), tmp_path / "data" / "train-00000-of-00001.parquet")
    write_dataset_card(tmp_path, "# Audio\n", {"default": {"train": "data/*.parquet"}})
    given = {"selection": "ground_truth", "traces": None, "split": "train", "audio_contribution": None}
    arguments = SimpleNamespace(audio=str(tmp_path), **given)
    collator = CompletionCollator(case.processor)
    (used,) = audio_rows(arguments, collator, tmp_path / "ledger.parquet")
    detail = "ground truth" + (f"; cut: the model hears {window:g} of {beyond_s:.2f} s" if window else "")
    assert [entry["detail"] for entry in read_ledger(tmp_path)] == [detail]
    batch = collator([used])
    heard = case.family.clip_features(case.processor, hum[: round(window * RATE)] if window else hum)
    assert case.num_audio_tokens(batch) == [heard.num_tokens]


def test_the_processor_of_another_family_is_refused(case: Case, tmp_path) -> None:
    other = next(name for name in BUILDERS if name != case.name)
    shutil.copytree(case.checkpoint, tmp_path / "mixed")
    for file in ("processor_config.json", "tokenizer_config.json", "tokenizer.json", "chat_template.jinja"):
        (tmp_path / "mixed" / file).unlink(missing_ok=True)
    BUILDERS[other]()[1].save_pretrained(tmp_path / "mixed")
    with pytest.raises(InputError, match=f"expected {case.family.processors[0]}: save the model's own processor beside it"):
        load_audio_processor(str(tmp_path / "mixed"))
    assert load_audio_processor(str(case.checkpoint))


def test_an_attention_that_takes_no_mask_shares_no_prompts(case: Case, monkeypatch) -> None:
    assert supports_custom_masks(case.model)
    monkeypatch.setattr(case.model.config.get_text_config(), "_attn_implementation", "flash_attention_2")
    assert not supports_custom_masks(case.model)


def test_an_attention_that_cannot_be_used_is_refused_before_the_weights_are_loaded(case: Case) -> None:
    arguments = ModelConfig(model_name_or_path=str(case.checkpoint), attn_implementation="flash_attention_9")
    with pytest.raises(
        InputError, match=r"attn_implementation flash_attention_9 cannot be used here \(.*; set it to sdpa or eager"
    ):
        model_init_kwargs(arguments)
    arguments.attn_implementation = "sdpa"
    assert model_init_kwargs(arguments)["attn_implementation"] == "sdpa"


def test_every_family_is_tested() -> None:
    assert sorted(BUILDERS) == sorted(type(family).__module__.rpartition(".")[2] for family in student_families())


def test_the_talker_is_refused(tmp_path) -> None:
    case = Case("qwen2_5_omni", build_family("qwen2_5_omni", tmp_path / "model"), tmp_path)
    arguments = ModelConfig(model_name_or_path=str(case.checkpoint), use_peft=True)
    arguments.lora_target_modules = r"talker\..*"
    with pytest.raises(InputError, match=r"matches no module .*; of this model only the thinker is loaded and trained"):
        lora_config(arguments)
    transformers.Qwen2_5OmniTalkerConfig().save_pretrained(tmp_path / "talker")
    case.processor.save_pretrained(tmp_path / "talker")
    with pytest.raises(InputError, match=r"is a model of type qwen2_5_omni_talker; expected an audio model, one of .*thinker"):
        load_audio_processor(str(tmp_path / "talker"))
