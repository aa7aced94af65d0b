#!/usr/bin/env bash
# Something to learn beyond elicitation: warm starts of half the length see badly; the loop is four times as long.
source "$(dirname "$0")/study.sh"
for seed in 0 1 2; do
  [ -n "${STORED:-}" ] || [ -e "runs/short-$seed/sft/config.json" ] || echo "short-$seed --seed $seed --stage sft --sft-steps 600"
done | xargs -r -P "$CORES" -L 1 bash -c '"$PYTHON" train.py --name "$@" >/dev/null' _
study headroom "0 1 2"
AGAINST=ril
long() { cell "$1" --student runs/short-SEED/sft --steps 240 --eval-every 60 "${@:2}"; }
cell look-prompted-ceiling --student runs/short-SEED/sft --algo dr_grpo --steps 0 --evaluated look
cell warm-start --student runs/short-SEED/sft --algo dr_grpo --steps 0
long dr_grpo --algo dr_grpo
long distill --algo distill
long ril --algo ril
long ril-A+B --teachers tiny-qwen-teacher,tiny-internvl-teacher
run_study
