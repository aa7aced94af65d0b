#!/usr/bin/env bash
# The zero-reward trap: questions that the warm start almost never answers (at most 5 % of 64 draws). The paper's claim is that
# teacher rows are the way out. The students are those of results/main.sh (run it first), asked 1,000 questions 16 times.
source "$(dirname "$0")/study.sh"
CELLS=(warm-start grpo dr_grpo distill-A no-D-A ril-A)
for cell in "${CELLS[@]}"; do
  for seed in 0 1 2 3 4; do
    [ -e "runs/trap-$cell-$seed/summary.json" ] || echo "$cell $seed $([ "$cell" = warm-start ] && echo 64 || echo 16)"
  done
done | xargs -r -P "$(nproc)" -L 1 bash -c '
  mkdir -p "runs/trap-$0-$1" && cp "runs/main-$0-$1/config.json" "runs/main-$0-$1/metrics.jsonl" "runs/trap-$0-$1/" &&
  "$PYTHON" eval.py --student "runs/main-$0-$1/student" --draws "$2" --seed "$1" --max-new-tokens 40 \
    --into "runs/trap-$0-$1" >"runs/trap-$0-$1.log" && echo "$(date +%T)  trap-$0-$1 ready"'
"$PYTHON" eval.py --collect trap --cells "$(IFS=,; echo "${CELLS[*]}")" --seeds 0,1,2,3,4
