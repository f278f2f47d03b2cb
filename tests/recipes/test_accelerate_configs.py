"""The files of accelerate_configs/ as accelerate reads them: what they start, and with what."""

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from sightsound.models.family import family_of
from tests.support.students import STUDENTS, released_model
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


@pytest.mark.parametrize("student", STUDENTS)
def test_fsdp_shards_by_the_layers_of_any_student(student: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy

    environment = launch_environment("fsdp2")
    assert (environment["ACCELERATE_USE_FSDP"], environment["FSDP_VERSION"]) == ("true", "2")
    assert environment["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"
    for name, value in environment.items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    model = released_model(student)
    is_sharded = fsdp2_prepare_auto_wrap_policy(FullyShardedDataParallelPlugin(), model)
    left = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if not any(is_sharded(model.get_submodule(parent)) for parent in parents_of(name))
    )
    # What belongs to no layer is sharded as one: the embedding and the output layer, and little else.
    text = model.config.get_text_config()
    assert left < 1.2 * 2 * text.vocab_size * text.hidden_size
    layers = model.get_submodule(family_of(model.config).language_model).layers
    assert len(layers) == text.num_hidden_layers and all(is_sharded(layer) for layer in layers)


def parents_of(parameter: str) -> list[str]:
    """Paths of the modules that hold a parameter, itself left out."""
    parts = parameter.split(".")[:-1]
    return [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def test_the_number_of_processes_can_be_overridden() -> None:
    """GRPO with a vLLM server on two GPUs trains on six."""
    config = FOLDER / "zero3.yaml"
    parsed = launch_command_parser().parse_args(["--config_file", str(config), "--num_processes", "6", "script.py"])
    args, _, _ = _validate_launch_command(parsed)
    assert (args.num_processes, args.use_deepspeed) == (6, True)
