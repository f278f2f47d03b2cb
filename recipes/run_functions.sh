# What recipes/run.sh and recipes/videos/run.sh share. They source this file in the root of the repository.

# check_student: sets R, the folder of the YAMLs of STUDENT, and BASE, the model that its training starts from
check_student() {
  local students
  R=recipes/$STUDENT
  if [ ! -f "$R/README.md" ] || ! compgen -G "$R/sft*.yaml" >/dev/null; then
    students=$(cd recipes && for each in */README.md; do
      if compgen -G "${each%/*}/sft*.yaml" >/dev/null; then echo "${each%/*}"; fi
    done | paste -sd ' ')
    echo "error: STUDENT=$STUDENT is no folder of recipes/ with a README.md; expected one of: $students" >&2
    exit 2
  fi
  BASE=$(awk '/^model_name_or_path:/ {print $2; exit}' "$R"/sft*.yaml)
}

is_complete() { grep -qs '"complete": true' "$1/stage.json"; }

# with_server PORT GPUS SERVER... -- COMMAND...: runs a vLLM server while the command runs, which may be another with_server
servers=()
trap '[ ${#servers[@]} -eq 0 ] || kill "${servers[@]}" 2>/dev/null || true' EXIT
with_server() {
  local port=$1 gpus=$2 serve=() server
  shift 2
  while [ "$1" != -- ]; do serve+=("$1"); shift; done
  shift
  CUDA_VISIBLE_DEVICES=$gpus vllm serve "${serve[@]}" --generation-config vllm --host 127.0.0.1 --port "$port" &
  server=$!
  servers+=("$server")
  until curl --silent --fail "http://127.0.0.1:$port/health" >/dev/null; do
    kill -0 "$server" || { echo "vLLM ended before it was ready" >&2; exit 1; }
    sleep 5
  done
  "$@"
  kill "$server"
  wait "$server" || true
  unset 'servers[-1]'
}

# look_up MODEL BASE_URL: ends with one line where the server does not list the model
look_up() { python -m sightsound.engines.openai_models --model "$1" --base_url "$2"; }

# yaml_of STAGE ARM: the arm's own YAML, or the one of all arms, which --selection completes
yaml_of() { if [ -f "$R/$1_$2.yaml" ]; then echo "$R/$1_$2.yaml"; else echo "$R/$1.yaml"; fi; }

# grpo_with_server MODEL GRPO_FLAGS...: 2 GPUs sample, 6 train
grpo_with_server() {
  local model=$1
  shift
  # TRL pauses the server and sends weights through its development routes.
  VLLM_SERVER_DEV_MODE=1 with_server 8000 0,1 "$model" --tensor-parallel-size 2 --max-model-len 2048 \
    --max-num-batched-tokens 32768 --enable-scale-out \
    --logprobs-mode processed_logprobs --weight-transfer-config '{"backend": "nccl"}' -- \
    env CUDA_VISIBLE_DEVICES=2,3,4,5,6,7 \
    accelerate launch --config_file accelerate_configs/zero3.yaml --num_processes 6 recipes/grpo.py "$@" \
    --model_name_or_path "$model"
}
