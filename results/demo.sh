#!/usr/bin/env bash
# make demo: Dr.GRPO and RIL from one shipped warm start, side by side, one process a core, where only a quarter of the training
# questions has an answer key (results/weak_judge.md has this setting over five seeds).
source "$(dirname "$0")/study.sh"
echo "1/2  Dr.GRPO and RIL from the same warm start, --judged 0.25, side by side"
SHARED="--judged 0.25 --eval-every 20 --eval-draws 2"
"$PYTHON" -u train.py --name demo-dr_grpo-0 $SHARED --algo dr_grpo --evaluated after 2>&1 | sed 's/^/dr_grpo | /' &
"$PYTHON" -u train.py --name demo-ril-0 $SHARED 2>&1 | sed 's/^/ril     | /'
wait
echo "2/2  what came out"
mkdir -p runs/demo
"$PYTHON" -m results.collect demo --cells dr_grpo,ril --seeds 0 --into runs/demo
echo "see: runs/demo/demo.png runs/demo-ril-0/samples.md runs/demo-ril-0/curves.png"
