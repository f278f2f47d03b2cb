#!/usr/bin/env bash
# The whole method on the miniature: the same commands as for real data, with small sizes. `make demo` runs this script.
#
#   SEED=0 bash recipes/miniature/run.sh          # SMOKE=1: all stages with toy sizes
#
# STUDENT is the student's family, qwen2_audio or qwen2_5_omni; teacher and checker are the same for both. Each has a folder of
# its own: OUTPUT is by default outputs/miniature, or outputs/miniature-STUDENT of another than the first.
#
# QUESTIONS=teacher trains the student from the clips alone: the teacher, which is also trained to write questions, writes those
# of the training clips. OUTPUT is then by default outputs/miniature-teacher. World, test questions, base student and checker are
# those of the demo with annotations, in ANNOTATED (default: its OUTPUT; OUTPUT itself where that is given); what of them is
# missing is made there. The report has finished runs of that demo beside.
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
QUESTIONS=${QUESTIONS:-annotated}
case $QUESTIONS in
  annotated) LINE="" ;;
  teacher) LINE=-teacher ;;
  *)
    echo "error: QUESTIONS=$QUESTIONS is no source of the miniature's questions; expected one of: annotated teacher" >&2
    exit 2
    ;;
esac
ANNOTATED=${ANNOTATED:-${OUTPUT:-outputs/miniature$OTHER${SMOKE:+-smoke}}}
OUTPUT=$(realpath -m --relative-to=. "${OUTPUT:-outputs/miniature$LINE$OTHER${SMOKE:+-smoke}}")
if [ "$QUESTIONS" = annotated ]; then ANNOTATED=$OUTPUT; fi
ANNOTATED=$(realpath -m --relative-to=. "$ANNOTATED")
D=$OUTPUT/seed-$SEED
S=$ANNOTATED/seed-$SEED # shared: world, test questions, base student, checker
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
HF_DATASETS_CACHE=$(realpath -m "$OUTPUT/.cache")
export HF_DATASETS_CACHE
mkdir -p "$D/logs"

LAUNCH="accelerate launch --config_file accelerate_configs/cpu.yaml"
if [ "$QUESTIONS" = annotated ]; then
  ABLATIONS="label cot agfv" ARM="" TEACHER_MODEL=teacher DATASET=$D/avqa-audio MEDIA=$D/world/clips
else
  ABLATIONS=cot ARM=videos- TEACHER_MODEL=writing_teacher DATASET=$D/questions MEDIA=$D/segments/segments
fi
WORLD="" PRETRAIN="" BASE="" TEACHER="" QUESTIONS_SIZE="" TRACES="" SFT="" GRPO="" # of SMOKE; of a repeated flag the last counts
if [ -n "${SMOKE:-}" ]; then
  if [ "$QUESTIONS" = annotated ]; then ABLATIONS=label; fi # the other arms have the same commands
  WORLD="--num_train 200 --num_validation 4 --num_test 8 --num_student 64 --num_teacher 64 --num_checker 64"
  # Enough steps for the checker to accept a few traces: without any, there is nothing to train on.
  PRETRAIN="--max_steps 140 --per_device_train_batch_size 8 --warmup_steps 5"
  BASE="--max_steps 30"
  TEACHER="--max_steps 110"
  if [ "$QUESTIONS" = teacher ]; then TEACHER="--max_steps 180"; fi # it has more to learn
  QUESTIONS_SIZE="--temperature 0.2 --blind_tries 2"
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

pretrain() { # FOLDER NAME CONFIG [FLAGS]
  local folder=$1 name=$2 config=$3
  shift 3
  # shellcheck disable=SC2086
  stage "$name" python recipes/miniature/pretrain.py --config "recipes/miniature/$config.yaml" --world "$S/world" \
    --output_dir "$folder/models/$name" --seed "$SEED" $PRETRAIN "$@"
}

sft() { # ARM
  # shellcheck disable=SC2086
  stage "sft-$1" $LAUNCH recipes/sft.py --config recipes/miniature/sft_$1.yaml --traces "$D/corpus" \
    --audio "$DATASET" --model_name_or_path "$S/models/student/model" --output_dir "$D/sft-$1" --seed "$SEED" $SFT
}

evaluate() { # FOLDER ARM MODEL METHOD [CONTROLS]
  local folder=$1 arm=$2 model=$3 method=$4
  shift 4
  stage "evaluate-$arm" python -m evaluation run --benchmark avqa --dataset "$S/avqa-audio" --split test --model "$model" \
    --modality audio --method "$method" --controls silent swapped "$@" --max_tokens 64 --batch_size 256 --arm "$arm" \
    --seed "$SEED" --output_dir "$folder/evaluation/$arm"
}

hearing_lane() {
  local listener=student # what the checker is trained from: a Qwen2-Audio, whatever the student is
  # shellcheck disable=SC2086
  pretrain "$S" student student --family "$STUDENT" $BASE
  if [ "$STUDENT" != qwen2_audio ]; then
    listener=checker-base
    # shellcheck disable=SC2086
    pretrain "$S" checker-base student $BASE
  fi
  pretrain "$S" checker checker --init_from "$S/models/$listener/model"
  evaluate "$S" base "$S/models/student/model" cot
}

traces() {
  # shellcheck disable=SC2086
  stage traces python dataset_builders/traces.py --dataset "$DATASET" --split train --media_dir "$MEDIA" \
    --model "$D/models/teacher/model" --num_traces 4 --temperature 1.0 --max_tokens 64 --num_frames 6 --batch_size 256 \
    --seed "$SEED" --output_dir "$D/traces" "$@" $TRACES
}

seeing_lane() {
  # shellcheck disable=SC2086
  pretrain "$D" teacher $TEACHER_MODEL $TEACHER
  if [ "$QUESTIONS" = annotated ]; then traces; fi
}

full_method_lane() {
  sft tts_agfv
  evaluate "$D" "${ARM}sft-tts_agfv" "$D/sft-tts_agfv/model" cot
  # shellcheck disable=SC2086
  stage grpo-tts_agfv $LAUNCH recipes/grpo.py --config recipes/miniature/grpo_tts_agfv.yaml --traces "$D/corpus" \
    --audio "$DATASET" --model_name_or_path "$D/sft-tts_agfv/model" --output_dir "$D/grpo-tts_agfv" --seed "$SEED" $GRPO
  evaluate "$D" "${ARM}grpo-tts_agfv" "$D/grpo-tts_agfv/model" cot text_only shuffled
}

ablation_lane() {
  local arm method
  for arm in $ABLATIONS; do
    if [ "$arm" = label ]; then method=direct; else method=cot; fi
    sft "$arm"
    evaluate "$D" "${ARM}sft-$arm" "$D/sft-$arm/model" $method
  done
}

# shellcheck disable=SC2086
stage world python dataset_builders/miniature.py --output_dir "$S/world" --seed "$SEED" $WORLD
stage avqa-audio python dataset_builders/avqa_audio.py --train_annotations "$S/world/train_qa.json" \
  --validation_annotations "$S/world/val_qa.json" --test_annotations "$S/world/test_qa.json" \
  --media_dir "$S/world/clips" --output_dir "$S/avqa-audio"
both hearing_lane seeing_lane
if [ "$QUESTIONS" = teacher ]; then # in two processes each: nothing else runs beside
  stage segments python dataset_builders/videos.py --source "$S/world/clips" --files "tr*" --segment_s 2 --license apache-2.0 \
    --output_dir "$D/segments"
  # shellcheck disable=SC2086
  stage questions python dataset_builders/questions.py --dataset "$D/segments" --split train --media_dir "$MEDIA" \
    --model "$D/models/teacher/model" --questions_per_segment 1 \
    --types which=0.25 first=0.2 last=0.2 how_many=0.25 compare=0.1 --prompt_file recipes/miniature/write_questions.txt \
    --answerer "$S/models/student/model" --answer_prompt cot --answer_max_tokens 64 --max_guessed 0.7 \
    --num_frames 6 --max_tokens 120 --batch_size 256 --num_tasks 2 --seed "$SEED" --output_dir "$D/questions" $QUESTIONS_SIZE
  traces --num_tasks 2
fi
stage verdicts python dataset_builders/verdicts.py --dataset "$DATASET" --split train --traces "$D/traces" \
  --checker "$S/models/checker/model" --verdict_mode transcript --max_tokens 32 --batch_size 256 --output_dir "$D/verdicts"
stage cot-corpus python dataset_builders/cot_corpus.py --dataset "$DATASET" --traces "$D/traces" \
  --verdicts "$D/verdicts" --license apache-2.0 --output_dir "$D/corpus"
both full_method_lane ablation_lane
# The report covers the finished runs of all seeds. Its training curves, traces and answers are those of this seed.
runs=() training=()
add_runs() { # FOLDER ARM...: what is finished of all seeds that OUTPUT has
  local folder=$1 arm seed
  shift
  for arm in "$@"; do
    for seed in "$OUTPUT"/seed-*; do
      seed=$folder/$(basename "$seed")
      if [ -f "$seed/evaluation/$arm/results.json" ]; then runs+=("$seed/evaluation/$arm"); fi
    done
  done
}
if [ "$QUESTIONS" = annotated ]; then
  add_runs "$OUTPUT" base sft-label sft-cot sft-agfv sft-tts_agfv grpo-tts_agfv
else # the report compares neighbours in pairs
  add_runs "$ANNOTATED" base sft-cot
  add_runs "$OUTPUT" videos-sft-cot videos-sft-tts_agfv
  add_runs "$ANNOTATED" grpo-tts_agfv
  add_runs "$OUTPUT" videos-grpo-tts_agfv
fi
for arm in sft-label sft-cot sft-agfv sft-tts_agfv grpo-tts_agfv; do
  if [ -f "$D/$arm/trainer_state.json" ]; then training+=("$D/$arm"); fi
done
report=(python -m evaluation report --runs "${runs[@]}" --training "${training[@]}" --dataset "$S/avqa-audio"
  --media_dir "$S/world/clips" --output_dir "$OUTPUT")
if [ "$QUESTIONS" = annotated ]; then report+=(--corpus "$D/corpus"); fi
printf '> %s\n' "${report[*]}"
if [ -n "${SMOKE:-}" ]; then echo "SMOKE: toy sizes: the figures mean nothing"; fi
"${report[@]}"
if [ "$QUESTIONS" = teacher ]; then
  stage written-questions python -m evaluation browse --dataset "$D/questions" --corpus "$D/corpus" --media_dir "$MEDIA" \
    --output_dir "$OUTPUT/written-questions"
  echo "videos-*: trained on the teacher's questions and reasoning alone, see $OUTPUT/written-questions/index.html. The arms" \
    "without videos- are those of make demo, with annotated questions, where $ANNOTATED has them."
fi
