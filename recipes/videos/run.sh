#!/usr/bin/env bash
# From videos alone to a student, with real models, on one node with 8 GPUs of 48 GB: no person annotates anything. The teacher
# writes questions about what must be heard, and its traces; the checker, which has the sound, rejects traces; SFT uses all
# questions that pass, and GRPO those that cannot be guessed without the clip.
#
#   VIDEOS=my-videos [VIDEO_FLAGS="--segments_per_video 6"] [HELD_OUT=other-videos] [MMAU=mmau] [MUSIC_AVQA=music-avqa] \
#       [STUDENT=qwen2_5_omni_7b] bash recipes/videos/run.sh
#
# VIDEOS: a folder of videos of any length, or a video dataset of the Hub as hf://datasets/ORG/NAME. VIDEO_FLAGS: further flags
# of dataset_builders/videos.py, for both sources; QUESTION_FLAGS: of questions.py. STUDENT: as in recipes/run.sh.
# SFT_STEPS, GRPO_STEPS: training steps, where those of the YAMLs, 2,000 and 1,000, are too many for a small folder.
#
# TEACHER (default Qwen/Qwen2.5-VL-32B-Instruct) is at TEACHER_BASE_URL, CHECKER (default Qwen/Qwen2.5-Omni-7B) at
# CHECKER_BASE_URL, with the key in OPENAI_API_KEY. What has no address is served by this script. The checker also answers the
# questions without their clips, as does any audio model ANSWERER at ANSWERER_BASE_URL. Where it refuses requests without sound,
# as OpenAI's audio models do, give TEXT_ANSWERER and TEXT_ANSWERER_BASE_URL. Estimate the cost with `--dry_run` of
# questions.py, traces.py and verdicts.py first: docs/own_data.md.
#
# The evaluation needs questions that the student was not trained on: HELD_OUT, another folder (or Hub dataset) of videos, whose
# questions the teacher writes too, so its answers count as right there; MMAU and MUSIC_AVQA as in recipes/run.sh.
# All is written to OUTPUT (default: outputs/videos); a student's runs and report are in OUTPUT/STUDENT.
# After a kill, run the same command again: complete stages are skipped, and the killed one continues.
set -euo pipefail
cd "$(dirname "$0")/../.."

STUDENT=${STUDENT:-qwen2_audio_7b}
. recipes/run_functions.sh
check_student
D=${OUTPUT:-outputs/videos}
S=$D/$STUDENT
TEACHER=${TEACHER:-Qwen/Qwen2.5-VL-32B-Instruct}
CHECKER=${CHECKER:-Qwen/Qwen2.5-Omni-7B}
: "${VIDEOS:?folder of videos, or hf://datasets/ORG/NAME}"
read -ra video_flags <<<"${VIDEO_FLAGS:-}"
read -ra question_flags <<<"${QUESTION_FLAGS:-}"

with_teacher() { # GPUS COMMAND...: the command ends with --base_url and its address
  local gpus=$1 count
  shift
  count=$(tr , '\n' <<<"$gpus" | wc -l)
  if [ -n "${TEACHER_BASE_URL:-}" ]; then "$@" --base_url "$TEACHER_BASE_URL"; return; fi
  with_server 8001 "$gpus" "$TEACHER" --tensor-parallel-size "$count" --trust-request-mm-kwargs \
    --enable-prompt-tokens-details --max-model-len 16384 --max-num-batched-tokens 65536 -- \
    "$@" --base_url http://127.0.0.1:8001/v1
}

with_checker() { # FLAG COMMAND...: the command ends with FLAG and the checker's address
  local flag=$1
  shift
  if [ -n "${CHECKER_BASE_URL:-}" ]; then "$@" "$flag" "$CHECKER_BASE_URL"; return; fi
  # Qwen2.5-Omni-7B has 28 attention heads and 4 key-value heads: tensor parallelism of 4 is possible, of 8 is not.
  with_server 8002 4,5,6,7 "$CHECKER" --tensor-parallel-size 4 --max-model-len 8192 -- \
    "$@" "$flag" http://127.0.0.1:8002/v1
}

questions() { # SOURCE NAME: segments of videos, and the teacher's questions about them
  local segments=$D/segments$2 command
  python dataset_builders/videos.py --source "$1" "${video_flags[@]}" --output_dir "$segments"
  if is_complete "$D/questions$2"; then return; fi
  command=(python dataset_builders/questions.py --dataset "$segments" --split train --media_dir "$segments/segments"
    --model "$TEACHER" "${question_flags[@]}" --output_dir "$D/questions$2")
  if [ -n "${TEXT_ANSWERER:-}" ]; then
    command+=(--text_answerer "$TEXT_ANSWERER" --text_answerer_base_url "${TEXT_ANSWERER_BASE_URL:?of TEXT_ANSWERER}")
  fi
  if [ -n "${ANSWERER:-}" ]; then
    with_teacher 0,1,2,3 "${command[@]}" --answerer "$ANSWERER" \
      --answerer_base_url "${ANSWERER_BASE_URL:?of ANSWERER}"
  else
    with_checker --answerer_base_url with_teacher 0,1,2,3 "${command[@]}" --answerer "$CHECKER"
  fi
}

if [ -n "${TEACHER_BASE_URL:-}" ] && ! is_complete "$D/traces"; then look_up "$TEACHER" "$TEACHER_BASE_URL"; fi
if [ -n "${CHECKER_BASE_URL:-}" ] && ! is_complete "$D/verdicts"; then look_up "$CHECKER" "$CHECKER_BASE_URL"; fi

questions "$VIDEOS" ""
declare -A benchmarks=() splits=()
if [ -n "${HELD_OUT:-}" ]; then
  questions "$HELD_OUT" -held_out
  benchmarks[avqa]=$D/questions-held_out
  splits[avqa]=train
fi
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
  with_teacher 0,1,2,3,4,5,6,7 python dataset_builders/traces.py --dataset "$D/questions" --split train \
    --media_dir "$D/segments/segments" --model "$TEACHER" --num_traces 8 --temperature 1.0 --output_dir "$D/traces"
fi
if ! is_complete "$D/verdicts"; then
  with_checker --base_url python dataset_builders/verdicts.py --dataset "$D/questions" --split train --traces "$D/traces" \
    --checker "$CHECKER" --verdict_mode yes_no --output_dir "$D/verdicts"
fi
python dataset_builders/cot_corpus.py --dataset "$D/questions" --traces "$D/traces" --verdicts "$D/verdicts" \
  --output_dir "$D/corpus"

# No question of these videos has an answer by a person, so no checkpoint is chosen by validation: the last one is taken.
shared=(--selection tts_agfv --audio "$D/questions" --traces "$D/corpus" --eval_strategy no --load_best_model_at_end false)
accelerate launch --config_file accelerate_configs/ddp.yaml --num_processes 8 recipes/sft.py \
  --config "$(yaml_of sft tts_agfv)" "${shared[@]}" ${SFT_STEPS:+--max_steps "$SFT_STEPS"} --output_dir "$S/sft-tts_agfv"
if ! is_complete "$S/grpo-tts_agfv"; then
  grpo_with_server "$S/sft-tts_agfv/model" --config "$(yaml_of grpo tts_agfv)" "${shared[@]}" --audio_contribution strong \
    ${GRPO_STEPS:+--max_steps "$GRPO_STEPS"} --output_dir "$S/grpo-tts_agfv"
fi

if [ ${#benchmarks[@]} -eq 0 ]; then
  echo "$S/grpo-tts_agfv/model is trained, and not evaluated: give HELD_OUT, MMAU or MUSIC_AVQA, and run this again"
  exit 0
fi
runs=()
evaluate() { # ARM MODEL METHOD: one output folder per benchmark
  local benchmark split
  for benchmark in "${!benchmarks[@]}"; do
    split=${splits[$benchmark]:-}
    python -m evaluation run --benchmark "$benchmark" --dataset "${benchmarks[$benchmark]}" ${split:+--split "$split"} \
      --model "$2" --modality audio --method "$3" --controls silent swapped --arm "$1" \
      --output_dir "$S/evaluation/$1/$benchmark"
    runs+=("$S/evaluation/$1/$benchmark")
  done
}
evaluate base-zero_shot_cot "$BASE" zero_shot_cot
for arm in sft-tts_agfv grpo-tts_agfv; do evaluate $arm "$S/$arm/model" cot; done
python -m evaluation report --runs "${runs[@]}" --training "$S/sft-tts_agfv" "$S/grpo-tts_agfv" --output_dir "$S/report"
