"""The files of accelerate_configs/ as accelerate reads them: what they start, and with what."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from tests.support.tiny import REPO


FOLDER = REPO / "accelerate_configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def launch_environment(name: str) -> dict[str, str]:
    """What `accelerate launch --config_file ... script.py` would give its processes; nothing is started."""
    parsed = launch_command_parser().parse_args(["--config_file", str(FOLDER / f"{name}.yaml"), "script.py"])
    parsed.nondefault = []
    args, defaults, _ = _validate_launch_command(parsed)
    args.main_process_port = 0
    if not args.use_deepspeed:
        return prepare_multi_gpu_env(args)
    args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    return prepare_deepspeed_cmd_env(args)[1]


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_loads_it_and_several_processes_share_the_work(name: str) -> None:
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    assert (config.num_processes > 1) == (config.distributed_type.value != "NO")


@pytest.mark.parametrize(("name", "stage"), [("zero2", "2"), ("zero3", "3")])
def test_zero_shards_by_its_stage_and_saves_whole_weights(name: str, stage: str) -> None:
    environment = launch_environment(name)
    assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == stage
    if name == "zero3":
        # Without these, each process would first load the whole model, and a checkpoint could not be read by others.
        assert environment["ACCELERATE_DEEPSPEED_ZERO3_INIT"].lower() == "true"
        assert environment["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"].lower() == "true"


def test_fsdp_shards_by_layers_that_the_model_has(student_checkpoint: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForMultimodalLM

    environment = launch_environment("fsdp2")
    assert (environment["ACCELERATE_USE_FSDP"], environment["FSDP_VERSION"]) == ("true", "2")
    assert environment["FSDP_AUTO_WRAP_POLICY"] == "TRANSFORMER_BASED_WRAP"
    assert environment["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"
    with torch.device("meta"):
        model = AutoModelForMultimodalLM.from_config(AutoConfig.from_pretrained(student_checkpoint))
    found = {type(module).__name__ for module in model.modules()}
    assert set(environment["FSDP_TRANSFORMER_CLS_TO_WRAP"].split(",")) <= found


def test_the_number_of_processes_can_be_overridden() -> None:
    """GRPO with a vLLM server on two GPUs trains on six."""
    config = FOLDER / "zero3.yaml"
    parsed = launch_command_parser().parse_args(["--config_file", str(config), "--num_processes", "6", "script.py"])
    args, _, _ = _validate_launch_command(parsed)
    assert (args.num_processes, args.use_deepspeed) == (6, True)
