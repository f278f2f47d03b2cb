#!/usr/bin/env bash
# Claims against whole traces, after `make demo` with the same SEED: the same traces and the same checker, at equal teacher cost.
#
#   SEED=0 bash recipes/miniature/claims.sh
#
# A complete stage is skipped, a killed stage continues.
set -euo pipefail
cd "$(dirname "$0")/../.."

SEED=${SEED:-0}
OUTPUT=${OUTPUT:-outputs/miniature}
D=$OUTPUT/seed-$SEED
C=$D/claims
PATH=$PWD/.venv/bin:$PATH
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
if [ ! -d "$D/sft-tts_agfv/model" ]; then
  echo "error: $D has no finished demo; run make demo SEED=$SEED first" >&2
  exit 2
fi

verdicts() { # FOLDER [FLAGS]
  local folder=$1
  shift
  python dataset_builders/verdicts.py --dataset "$D/avqa-audio" --split train --traces "$D/traces" \
    --checker "$D/models/checker/model" --verdict_mode transcript_claims --rewriter "$D/models/teacher/model" \
    --rewriter_max_tokens 64 --max_tokens 32 --batch_size 256 --output_dir "$folder" "$@"
}

verdicts "$C/verdicts"
verdicts "$C/verdicts-equal" --limit "$(python recipes/miniature/compare_claims.py --run "$D" --seed "$SEED" --equal_cost)"
python dataset_builders/cot_corpus.py --dataset "$D/avqa-audio" --traces "$D/traces" --verdicts "$C/verdicts-equal" \
  --license apache-2.0 --output_dir "$C/corpus"
accelerate launch --config_file accelerate_configs/cpu.yaml recipes/sft.py --config recipes/miniature/sft_tts_claims.yaml \
  --traces "$C/corpus" --audio "$D/avqa-audio" --model_name_or_path "$D/models/student/model" --output_dir "$C/sft-tts_claims" \
  --seed "$SEED"
python -m evaluation run --benchmark avqa --dataset "$D/avqa-audio" --split test --model "$C/sft-tts_claims/model" \
  --modality audio --method cot --controls silent swapped --max_tokens 64 --batch_size 256 --arm sft-tts_claims --seed "$SEED" \
  --output_dir "$C/evaluation/sft-tts_claims"
python recipes/miniature/compare_claims.py --run "$D" --seed "$SEED"
