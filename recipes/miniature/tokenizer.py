"""
Train the miniature's tokenizer. Its result, `recipes/miniature/tokenizer/`, is part of the repository.

    python recipes/miniature/tokenizer.py --world outputs/miniature/seed-0/world --output_dir recipes/miniature/tokenizer

The class and the special tokens are those of Qwen2-Audio and Qwen2.5-VL. The BPE is trained on the prompts and the texts of the
miniature. Run it again only when `PROMPT_VERSION` changes.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from sightsound.cli import parse_arguments, run
from sightsound.method import prompts


SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|AUDIO|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
TEMPLATE_TEXTS = ["system\nYou are a helpful assistant.", "user\nAudio 1: ", "assistant\n", "yes", "no", "Yes.", "No."]


@dataclass
class TokenizerArguments:
    world: str = field(metadata={"help": "folder written by dataset_builders/miniature.py"})
    output_dir: str = field(metadata={"help": "where to save the tokenizer"})


def corpus(world: Path) -> list[str]:
    """Samples of all texts that the miniature's models read or write."""
    from sightsound.data.parquet import open_dataset

    texts = [*TEMPLATE_TEXTS, prompts.CHECKER_YES_NO] * 50
    for name in ("student", "teacher", "checker"):
        rows = open_dataset(str(world / "pretraining" / name), "train").select_columns(["prompt", "completion"])
        texts += [text for row in rows.select(range(min(3000, len(rows)))) for text in row.values()]
    for row in json.loads((world / "train_qa.json").read_text()):
        question, choices = row["question_text"].replace("video", "audio"), row["multi_choice"]
        texts += [prompts.question_text(question, choices, i) for i in (prompts.COT_PROMPT, prompts.DIRECT_PROMPT)]
    return texts


def main() -> None:
    args = parse_arguments(TokenizerArguments, __doc__)
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus(Path(args.world)), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    qwen = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        additional_special_tokens=SPECIAL_TOKENS,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    qwen.save_pretrained(args.output_dir)
    print(f"{len(qwen)} tokens -> {args.output_dir}")


if __name__ == "__main__":
    run(main)
