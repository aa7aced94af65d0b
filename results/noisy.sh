#!/usr/bin/env bash
# Teacher text that belongs to another question: none, 50 or 100 % of it (results/mispair.py makes the files, a draw for each seed).
# Rows end in that share and in the share of questions with an answer key: p50-j25. Run results/taught.sh first: its warm start, its
# Dr.GRPO and its rows of 512 questions are this study's rows without foreign text (the same commands), linked and not run again.
source "$(dirname "$0")/study.sh"
SHARES="50 100"
study noisy "0 1 2 3 4"
for seed in $SEEDS; do
  [ -z "${STORED:-}" ] || continue
  for percent in $SHARES; do
    file=runs/noisy-p$percent-$seed.jsonl
    [ -e $file ] || "$PYTHON" -m results.mispair tiny-qwen-teacher $percent $seed $file
  done
  for row in warm-start dr_grpo-j25 {distill,constant,ril,D-alone}-512-j25; do
    ln -sfn taught-$row-$seed runs/noisy-${row/512/p0}-$seed
  done
done
PANELS=similarity,d_accuracy AGAINST=distill-p0-j25,distill-p50-j25,distill-p100-j25
NOTE="Checkpoint: rows j0 export the last step, as training had no answer key; the others the best of every 20th step on 300 validation questions, with their full key."
cell warm-start --algo dr_grpo --steps 0 --evaluated blank
cell dr_grpo-j25 --algo dr_grpo --judged 0.25 --evaluated blank
for percent in 0 $SHARES; do
  noisy="--judged 0.25"
  [ $percent = 0 ] || noisy="--teachers-file runs/noisy-p$percent-SEED.jsonl --judged 0.25"
  cell distill-p$percent-j25 --algo distill $noisy
  cell constant-p$percent-j25 --similarity constant $noisy
  cell ril-p$percent-j25 $noisy
  cell D-alone-p$percent-j25 --teacher-use discriminator $noisy
  [ $percent = 0 ] || cell D-alone-p$percent-j0 --teacher-use discriminator $noisy --judged 0
done
run_study
