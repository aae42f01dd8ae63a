#!/usr/bin/env bash
# Measure guidance on one NVIDIA GPU in about ten minutes, without the time of downloads.
#
#   load_tests/gpu.sh > results.md
#
# Starts vLLM twice on one GPU, teacher and student, and compares guided answers with each model alone: tokens/s, first
# token and cost at 1, 16 and 64 callers, and accuracy on 50 generated questions. It prints Markdown tables.
#
# Variables and their defaults:
#   TEACHER=Qwen/Qwen2.5-14B-Instruct  TEACHER_MEMORY=0.60   model on the Hugging Face hub, share of the GPU's memory
#   STUDENT=Qwen/Qwen2.5-3B-Instruct   STUDENT_MEMORY=0.30
#   TEACHER_PORT=8001  STUDENT_PORT=8002
#   VLLM=vllm      the program; without it, vLLM is installed into ~/.cache/gkt-gateway/engines/vllm-gpu
#   VLLM_FLAGS=    more flags for both engines
#   START_S=1200   the longest start of an engine, with its download
# Arguments go to load_tests/gpu.py, such as --tokens 20 (see --help there).
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
case ${1:-} in --help | -h) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit ;; esac

TEACHER=${TEACHER:-Qwen/Qwen2.5-14B-Instruct} TEACHER_MEMORY=${TEACHER_MEMORY:-0.60}
STUDENT=${STUDENT:-Qwen/Qwen2.5-3B-Instruct} STUDENT_MEMORY=${STUDENT_MEMORY:-0.30}
TEACHER_PORT=${TEACHER_PORT:-8001} STUDENT_PORT=${STUDENT_PORT:-8002}
START_S=${START_S:-1200}
say() { printf 'gpu: %s\n' "$*" >&2; }

command -v nvidia-smi >/dev/null || { say "nvidia-smi is missing: this machine has no NVIDIA driver"; exit 1; }
nvidia-smi --query-gpu=name,memory.total --format=csv,noheader >&2
for port in "$TEACHER_PORT" "$STUDENT_PORT"; do
  # Otherwise the server on this port would be measured.
  if (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
    say "port $port is in use: end its server, or set TEACHER_PORT and STUDENT_PORT"
    exit 1
  fi
done
scripts/env

vllm=${VLLM:-$(command -v vllm || true)}
if [[ -z $vllm ]]; then
  folder=${XDG_CACHE_HOME:-$HOME/.cache}/gkt-gateway/engines/vllm-gpu
  vllm=$folder/bin/vllm
  if [[ ! -x $vllm ]]; then
    say "installing vLLM into $folder (about 10 GB)"
    .venv/bin/uv venv --quiet --python .venv/bin/python "$folder"
    .venv/bin/uv pip install --python "$folder/bin/python" 'vllm>=0.32,<1' >&2
  fi
fi

logs=$(mktemp -d)
pids=()
stop() {
  ((${#pids[@]} == 0)) || kill "${pids[@]}" 2>/dev/null || true
  wait || true
}
trap stop EXIT

start() {  # ROLE MODEL MEMORY PORT: start an engine and wait until it is ready
  local log=$logs/$1.log waited=0
  say "starting the $1, $2 (log: $log)"
  # shellcheck disable=SC2086
  "$vllm" serve "$2" --served-model-name "$1" --host 127.0.0.1 --port "$4" --max-model-len 4096 \
    --gpu-memory-utilization "$3" --enable-prompt-tokens-details ${VLLM_FLAGS:-} >"$log" 2>&1 &
  local pid=$!
  pids+=("$pid")
  until curl -fsS "http://127.0.0.1:$4/health" >/dev/null 2>&1; do
    is_running "$1" "$pid"
    ((waited < START_S)) || { say "the $1 was not ready after $START_S s; its log ends:"; tail -n 20 "$log" >&2; exit 1; }
    sleep 2
    ((waited += 2))
  done
  is_running "$1" "$pid"  # another server may have answered
}

is_running() {  # ROLE PID: exit unless the engine runs
  kill -0 "$2" 2>/dev/null || { say "the $1 ended; its log ends:"; tail -n 20 "$logs/$1.log" >&2; exit 1; }
}

# One after the other: vLLM measures the free memory while it starts.
start teacher "$TEACHER" "$TEACHER_MEMORY" "$TEACHER_PORT"
start student "$STUDENT" "$STUDENT_MEMORY" "$STUDENT_PORT"
say "measuring"
printf '%s -> %s on %s, vLLM %s, %s\n\n' "$TEACHER" "$STUDENT" "$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1)" \
  "$(curl -fsS http://127.0.0.1:$TEACHER_PORT/version | tr -dc '0-9.a-z+' | sed 's/^version//')" "$(date +%F)"
PYTHONPATH=. .venv/bin/python -m load_tests.gpu --teacher-url "http://127.0.0.1:$TEACHER_PORT" \
  --student-url "http://127.0.0.1:$STUDENT_PORT" "$@"
