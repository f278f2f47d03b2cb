#!/usr/bin/env bash
# The whole pipeline with real models, on one node with 8 GPUs of 48 GB: trains every row of the paper's Table 2, evaluates it
# on AVQA's validation split (which also selected the checkpoints), MMAU test-mini and MUSIC-AVQA, and writes the table.
#
#   ANNOTATIONS=avqa VIDEOS=avqa/videos [MMAU=mmau] [MUSIC_AVQA=music-avqa] [STUDENT=qwen2_5_omni_7b] bash recipes/run.sh
#
# STUDENT: the folder of recipes/ with the student's YAMLs (default: qwen2_audio_7b, the paper's student). Datasets, traces,
# verdicts and corpus are the same for all students: they are made once, in OUTPUT (default: outputs/table2). A student's runs
# and report are in OUTPUT/STUDENT.
#
# The checker is CHECKER (default Qwen/Qwen2.5-Omni-7B) at CHECKER_BASE_URL, with the key in OPENAI_API_KEY. The server's list
# of models is checked for its name first, before the teacher works for hours. Without CHECKER_BASE_URL this script serves the
# checker. The paper's gpt-4o-audio-preview is shut down. OpenAI's audio models are CHECKER=gpt-audio-1.5 and gpt-audio, with
# CHECKER_BASE_URL=https://api.openai.com/v1.
#
# ANNOTATIONS: folder with AVQA's train_qa.json and val_qa.json. VIDEOS: folder with the clips. MMAU: folder with
# mmau-test-mini.json and test-mini-audios/. MUSIC_AVQA: folder with avqa-test.json and videos/. Without MMAU or MUSIC_AVQA the
# table says "not run" in its columns. Verdicts of a paid checker cost money: estimate them with `verdicts.py --dry_run` first.
# After a kill, run the same command again: complete stages are skipped, and the killed one continues.
set -euo pipefail
cd "$(dirname "$0")/.."

STUDENT=${STUDENT:-qwen2_audio_7b}
. recipes/run_functions.sh
check_student
D=${OUTPUT:-outputs/table2}
S=$D/$STUDENT
TEACHER=Qwen/Qwen2.5-VL-32B-Instruct
CHECKER=${CHECKER:-Qwen/Qwen2.5-Omni-7B}
: "${ANNOTATIONS:?folder with train_qa.json and val_qa.json}" "${VIDEOS:?folder with the clips}"

sft() { # ARM [FLAGS]: 8 GPUs x 8 rows
  local arm=$1
  shift
  accelerate launch --config_file accelerate_configs/ddp.yaml --num_processes 8 recipes/sft.py \
    --config "$(yaml_of sft "$arm")" --selection "$arm" --audio "$D/avqa-audio" --output_dir "$S/sft-$arm" "$@"
}

grpo() { # ARM MODEL
  if is_complete "$S/grpo-$1"; then return; fi
  grpo_with_server "$2" --config "$(yaml_of grpo "$1")" --selection "$1" --audio "$D/avqa-audio" --traces "$D/corpus" \
    --output_dir "$S/grpo-$1"
}

evaluate() { # ARM MODEL METHOD: one output folder per benchmark
  local benchmark
  for benchmark in "${!benchmarks[@]}"; do
    python -m evaluation run --benchmark "$benchmark" --dataset "${benchmarks[$benchmark]}" --model "$2" --modality audio \
      --method "$3" --controls silent swapped --arm "$1" --output_dir "$S/evaluation/$1/$benchmark"
  done
}

if [ -n "${CHECKER_BASE_URL:-}" ] && ! is_complete "$D/verdicts"; then
  look_up "$CHECKER" "$CHECKER_BASE_URL"
fi

python dataset_builders/avqa_audio.py --train_annotations "$ANNOTATIONS/train_qa.json" \
  --validation_annotations "$ANNOTATIONS/val_qa.json" --media_dir "$VIDEOS" --output_dir "$D/avqa-audio"

declare -A benchmarks=([avqa]=$D/avqa-audio)
if [ -n "${MMAU:-}" ]; then
  python dataset_builders/mmau.py --annotations "$MMAU/mmau-test-mini.json" --media_dir "$MMAU/test-mini-audios" \
    --output_dir "$D/mmau"
  benchmarks[mmau]=$D/mmau
fi
if [ -n "${MUSIC_AVQA:-}" ]; then
  python dataset_builders/music_avqa.py --annotations "$MUSIC_AVQA/avqa-test.json" --media_dir "$MUSIC_AVQA/videos" \
    --output_dir "$D/music-avqa"
  benchmarks[music_avqa]=$D/music-avqa
fi

if ! is_complete "$D/traces"; then
  with_server 8001 0,1,2,3,4,5,6,7 "$TEACHER" --tensor-parallel-size 8 --trust-request-mm-kwargs \
    --enable-prompt-tokens-details --max-model-len 16384 --max-num-batched-tokens 65536 -- \
    python dataset_builders/traces.py --dataset "$D/avqa-audio" --split train --media_dir "$VIDEOS" --model "$TEACHER" \
    --base_url http://127.0.0.1:8001/v1 --num_traces 8 --temperature 1.0 --output_dir "$D/traces"
fi
verdicts() { # BASE_URL
  python dataset_builders/verdicts.py --dataset "$D/avqa-audio" --split train --traces "$D/traces" --checker "$CHECKER" \
    --base_url "$1" --verdict_mode yes_no --output_dir "$D/verdicts"
}
if [ -n "${CHECKER_BASE_URL:-}" ]; then
  verdicts "$CHECKER_BASE_URL"
elif ! is_complete "$D/verdicts"; then
  # Qwen2.5-Omni-7B has 28 attention heads and 4 key-value heads: tensor parallelism of 4 is possible, of 8 is not.
  with_server 8002 0,1,2,3 "$CHECKER" --tensor-parallel-size 4 --max-model-len 8192 --generation-config vllm -- \
    verdicts http://127.0.0.1:8002/v1
fi
python dataset_builders/cot_corpus.py --dataset "$D/avqa-audio" --traces "$D/traces" --verdicts "$D/verdicts" \
  --output_dir "$D/corpus"

sft ground_truth
for arm in label cot agfv tts_agfv; do sft $arm --traces "$D/corpus"; done
grpo label "$BASE"
grpo tts_agfv "$S/sft-tts_agfv/model"

evaluate base-direct "$BASE" direct
evaluate base-zero_shot_cot "$BASE" zero_shot_cot
for arm in ground_truth label; do evaluate "sft-$arm" "$S/sft-$arm/model" direct; done
for arm in sft-cot sft-agfv sft-tts_agfv grpo-label grpo-tts_agfv; do evaluate $arm "$S/$arm/model" cot; done
runs=()
for arm in base-direct base-zero_shot_cot sft-ground_truth sft-label sft-cot sft-agfv sft-tts_agfv grpo-label grpo-tts_agfv; do
  for benchmark in "${!benchmarks[@]}"; do runs+=("$S/evaluation/$arm/$benchmark"); done
done
python -m evaluation report --runs "${runs[@]}" --training "$S"/sft-* "$S"/grpo-* --output_dir "$S/report"
