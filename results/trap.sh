#!/usr/bin/env bash
# The zero-reward trap: questions that the warm start almost never answers (at most 5 % of 64 draws, the first row, whose draws
# serve for nothing else). The paper's claim is that teacher rows are the way out. The students are those of results/main.sh
# (run it first), asked 1,000 questions 16 times.
source "$(dirname "$0")/study.sh"
CELLS=(selection warm-start grpo dr_grpo distill-A no-D-A ril-A)
for cell in "${CELLS[@]}"; do
  for seed in 0 1 2 3 4; do
    [ -n "${STORED:-}" ] || [ -e "runs/trap-$cell-$seed/summary.json" ] && continue
    [ "$cell" = selection ] && echo "$cell warm-start $seed 64 $((seed + 1000))" || echo "$cell $cell $seed 16 $seed"
  done
done | xargs -r -P "$CORES" -L 1 bash -c '
  mkdir -p "runs/trap-$0-$2" && cp "runs/main-$1-$2/config.json" "runs/main-$1-$2/metrics.jsonl" "runs/trap-$0-$2/" &&
  "$PYTHON" eval.py --student "runs/main-$1-$2/student" --draws "$3" --seed "$4" --into "runs/trap-$0-$2" \
    >"runs/trap-$0-$2.log" && echo "$(date +%T)  trap-$0-$2 ready"'
AGAINST=ril-A PANELS=dead_groups
collect trap "$(IFS=,; echo "${CELLS[*]}")" "0 1 2 3 4"
