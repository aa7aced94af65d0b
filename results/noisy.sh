#!/usr/bin/env bash
# Teacher text that belongs to another question: 0, 25, 50 or 100 % of it (results/mispair.py makes the files, a draw for each seed).
# Rows end in that share and in the share of questions with an answer key: p50-j25. "same" and "twice" are those of results/taught.sh.
source "$(dirname "$0")/study.sh"
SHARES="0 25 50 100"
study noisy "0 1 2 3 4"
for percent in $SHARES; do
  for seed in $SEEDS; do
    file=runs/noisy-p$percent-$seed.jsonl
    [ -n "${STORED:-}" ] || [ -e $file ] || { mkdir -p runs && "$PYTHON" -m results.mispair tiny-qwen-teacher $percent $seed $file; }
  done
done
PANELS=similarity,d_accuracy AGAINST=""
NOTE="Checkpoint: rows j0 export the last step, as training had no answer key; the others the best of every 20th step on 300 validation questions, with their full key."
cell warm-start --algo dr_grpo --steps 0
cell dr_grpo-j25 --algo dr_grpo --judged 0.25
for percent in $SHARES; do
  file="--teachers-file runs/noisy-p$percent-SEED.jsonl"
  AGAINST=$AGAINST,distill-half-p$percent
  cell distill-half-p$percent --algo distill $file --judged 0 --steps 30
  for key in 0 25; do
    name=p$percent-j$key noisy="$file --judged 0"
    [ $key = 0 ] || noisy="$file --judged 0.25"
    AGAINST=$AGAINST,distill-$name
    cell distill-$name --algo distill $noisy
    cell constant-$name --similarity constant $noisy
    cell ril-$name $noisy
    cell ril-pairs-$name --d-loss pairwise $noisy
    cell D-alone-$name --teacher-use discriminator $noisy
    cell D-alone-pairs-$name --teacher-use discriminator --d-loss pairwise $noisy
  done
  cell distill-then-dr_grpo-same-p$percent-j25 --algo dr_grpo --judged 0.25 --steps 30 --student runs/noisy-distill-half-p$percent-SEED/student
  cell distill-then-dr_grpo-twice-p$percent-j25 --algo dr_grpo --judged 0.25 --student runs/noisy-distill-p$percent-j25-SEED/student
done
run_study
