#!/usr/bin/env bash
# The whole method on the miniature: the same commands as for real data, with small sizes. `make demo` runs this script.
#
#   SEED=0 bash recipes/miniature/run.sh          # SMOKE=1: all stages with toy sizes
#
# STUDENT is the student's family, qwen2_audio or qwen2_5_omni; teacher and checker are the same for both. Each has a folder of
# its own: OUTPUT is by default outputs/miniature, or outputs/miniature-STUDENT of another than the first.
#
# Two stages run in parallel, with one thread each. A complete stage is skipped, a killed stage continues.
set -euo pipefail
cd "$(dirname "$0")/../.."

SEED=${SEED:-0}
STUDENT=${STUDENT:-qwen2_audio}
case $STUDENT in
  qwen2_audio) OTHER="" ;;
  qwen2_5_omni) OTHER=-$STUDENT ;;
  *)
    echo "error: STUDENT=$STUDENT is no student of the miniature; expected one of: qwen2_audio qwen2_5_omni" >&2
    exit 2
    ;;
esac
OUTPUT=$(realpath -m --relative-to=. "${OUTPUT:-outputs/miniature$OTHER${SMOKE:+-smoke}}")
D=$OUTPUT/seed-$SEED
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
HF_DATASETS_CACHE=$(realpath -m "$OUTPUT/.cache")
export HF_DATASETS_CACHE
mkdir -p "$D/logs"

LAUNCH="accelerate launch --config_file accelerate_configs/cpu.yaml"
ABLATIONS="label cot agfv"
WORLD="" PRETRAIN="" BASE="" TEACHER="" TRACES="" SFT="" GRPO="" # the sizes of SMOKE; of a repeated flag the last counts
if [ -n "${SMOKE:-}" ]; then
  ABLATIONS=label # the other arms have the same commands
  WORLD="--num_train 200 --num_validation 4 --num_test 8 --num_student 64 --num_teacher 64 --num_checker 64"
  # Enough steps for the checker to accept a few traces: without any, there is nothing to train on.
  PRETRAIN="--max_steps 140 --per_device_train_batch_size 8 --warmup_steps 5"
  BASE="--max_steps 30"
  TEACHER="--max_steps 110"
  TRACES="--num_traces 2 --temperature 0.2"
  SFT="--max_steps 2 --per_device_train_batch_size 4"
  GRPO="--max_steps 2 --per_device_train_batch_size 8 --num_generations 4"
fi

# stage NAME COMMAND...: prints a line at start and end, and progress bars on a terminal. logs/NAME.log has all output.
stage() {
  local name=$1 log=$D/logs/$1.log start=$SECONDS
  shift
  printf '> %s\n' "$*"
  if [ -t 2 ]; then
    "$@" > >(tee -a "$log" >/dev/null) 2> >(tee -a "$log" >&2)
  else
    "$@" >>"$log" 2>&1
  fi || {
    printf 'FAILED %s, see %s:\n' "$name" "$log"
    grep '^error: ' "$log" | tail -n 1 | grep . || tail -n 5 "$log" # accelerate prints a traceback after our line
    return 1
  }
  printf '  done: %s, %d s\n' "$name" $((SECONDS - start))
}

# both LANE LANE: runs two functions in parallel; the first failure, or an interrupt, stops both and all their processes
both() {
  set -m # a process group for each lane
  "$1" & lanes=($!)
  TQDM_POSITION=1 "$2" & lanes+=($!)
  set +m
  wait -n || { stop_lanes; exit 1; }
  wait -n || { stop_lanes; exit 1; }
  lanes=()
}
lanes=()
stop_lanes() {
  local lane
  for lane in "${lanes[@]}"; do kill -- "-$lane" 2>/dev/null || true; done
}
trap 'stop_lanes; exit 130' INT TERM

pretrain() { # NAME CONFIG [FLAGS]
  local name=$1 config=$2
  shift 2
  # shellcheck disable=SC2086
  stage "$name" python recipes/miniature/pretrain.py --config "recipes/miniature/$config.yaml" --world "$D/world" \
    --output_dir "$D/models/$name" --seed "$SEED" $PRETRAIN "$@"
}

sft() { # ARM
  # shellcheck disable=SC2086
  stage "sft-$1" $LAUNCH recipes/sft.py --config recipes/miniature/sft_$1.yaml --traces "$D/corpus" \
    --audio "$D/avqa-audio" --model_name_or_path "$D/models/student/model" --output_dir "$D/sft-$1" --seed "$SEED" $SFT
}

evaluate() { # ARM MODEL METHOD [CONTROLS]
  local arm=$1 model=$2 method=$3
  shift 3
  stage "evaluate-$arm" python -m evaluation run --benchmark avqa --dataset "$D/avqa-audio" --split test --model "$model" \
    --modality audio --method "$method" --controls silent swapped "$@" --max_tokens 64 --batch_size 256 --arm "$arm" \
    --seed "$SEED" --output_dir "$D/evaluation/$arm"
}

hearing_lane() {
  local listener=student # what the checker is trained from: a Qwen2-Audio, whatever the student is
  # shellcheck disable=SC2086
  pretrain student student --family "$STUDENT" $BASE
  if [ "$STUDENT" != qwen2_audio ]; then
    listener=checker-base
    # shellcheck disable=SC2086
    pretrain checker-base student $BASE
  fi
  pretrain checker checker --init_from "$D/models/$listener/model"
  evaluate base "$D/models/student/model" cot
}

seeing_lane() {
  # shellcheck disable=SC2086
  pretrain teacher teacher $TEACHER
  # shellcheck disable=SC2086
  stage traces python dataset_builders/traces.py --dataset "$D/avqa-audio" --split train --media_dir "$D/world/clips" \
    --model "$D/models/teacher/model" --num_traces 4 --temperature 1.0 --max_tokens 64 --num_frames 6 --batch_size 256 \
    --seed "$SEED" --output_dir "$D/traces" $TRACES
}

full_method_lane() {
  sft tts_agfv
  evaluate sft-tts_agfv "$D/sft-tts_agfv/model" cot
  # shellcheck disable=SC2086
  stage grpo-tts_agfv $LAUNCH recipes/grpo.py --config recipes/miniature/grpo_tts_agfv.yaml --traces "$D/corpus" \
    --audio "$D/avqa-audio" --model_name_or_path "$D/sft-tts_agfv/model" --output_dir "$D/grpo-tts_agfv" --seed "$SEED" $GRPO
  evaluate grpo-tts_agfv "$D/grpo-tts_agfv/model" cot text_only shuffled
}

ablation_lane() {
  local arm method
  for arm in $ABLATIONS; do
    if [ "$arm" = label ]; then method=direct; else method=cot; fi
    sft "$arm"
    evaluate "sft-$arm" "$D/sft-$arm/model" $method
  done
}

# shellcheck disable=SC2086
stage world python dataset_builders/miniature.py --output_dir "$D/world" --seed "$SEED" $WORLD
stage avqa-audio python dataset_builders/avqa_audio.py --train_annotations "$D/world/train_qa.json" \
  --validation_annotations "$D/world/val_qa.json" --test_annotations "$D/world/test_qa.json" \
  --media_dir "$D/world/clips" --output_dir "$D/avqa-audio"
both hearing_lane seeing_lane
stage verdicts python dataset_builders/verdicts.py --dataset "$D/avqa-audio" --split train --traces "$D/traces" \
  --checker "$D/models/checker/model" --verdict_mode transcript --max_tokens 32 --batch_size 256 --output_dir "$D/verdicts"
stage cot-corpus python dataset_builders/cot_corpus.py --dataset "$D/avqa-audio" --traces "$D/traces" \
  --verdicts "$D/verdicts" --license apache-2.0 --output_dir "$D/corpus"
both full_method_lane ablation_lane
# The report covers the finished runs of all seeds. Its training curves, traces and answers are those of this seed.
runs=() training=()
for arm in base sft-label sft-cot sft-agfv sft-tts_agfv grpo-tts_agfv; do
  for run in "$OUTPUT"/seed-*/evaluation/"$arm"; do
    if [ -f "$run/results.json" ]; then runs+=("$run"); fi
  done
  if [ -f "$D/$arm/trainer_state.json" ]; then training+=("$D/$arm"); fi
done
report=(python -m evaluation report --runs "${runs[@]}" --training "${training[@]}" --dataset "$D/avqa-audio"
  --corpus "$D/corpus" --media_dir "$D/world/clips" --output_dir "$OUTPUT")
printf '> %s\n' "${report[*]}"
if [ -n "${SMOKE:-}" ]; then echo "SMOKE: toy sizes: the figures mean nothing"; fi
"${report[@]}"
