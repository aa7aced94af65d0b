#!/usr/bin/env bash
# Teacher text for few questions: 8, 32, 128 of 512, or all; each seed has its own warm start and its own draw of the questions.
# Rows end in the share of questions with an answer key: j0, j25, j100. "same" has as many updates in all as RIL, "twice" twice as many;
# both begin where a row above ends (on very many cores: run the study again for those that came too soon). Distillation asks no judge, so
# j25 stands for j100 too. Rows of 32, warm start and Dr.GRPO are asked with blank pictures besides.
source "$(dirname "$0")/study.sh"
study taught "0 1 2 3 4"
PANELS=similarity,d_accuracy AGAINST=distill-half-8,distill-half-32,distill-8-j0,distill-8-j25,distill-32-j0,distill-32-j25,distill-128-j25,distill-512-j25
NOTE="Checkpoint: rows j0 export the last step, as training had no answer key; the others the best of every 20th step on 300 validation questions, with their full key."
declare -A JUDGED=([0]=0 [25]=0.25 [100]=1)
cell warm-start --algo dr_grpo --steps 0 --evaluated blank
for key in 25 100; do cell dr_grpo-j$key --algo dr_grpo --judged ${JUDGED[$key]} --evaluated blank; done
for n in 8 32; do
  blank=""
  [ $n = 8 ] || blank="--evaluated blank"
  cell distill-half-$n --algo distill --taught $n --judged 0 --steps 30
  for key in 0 25 100; do
    few="--taught $n --judged ${JUDGED[$key]} $blank"
    [ $key = 100 ] || cell distill-$n-j$key --algo distill $few
    cell constant-$n-j$key --similarity constant $few
    cell ril-$n-j$key $few
    cell ril-pairs-$n-j$key --d-loss pairwise $few
    cell D-alone-$n-j$key --teacher-use discriminator $few
    cell D-alone-pairs-$n-j$key --teacher-use discriminator --d-loss pairwise $few
    [ $key = 0 ] && continue
    cell ril-gated-$n-j$key --similarity gated $few
    then="--algo dr_grpo --judged ${JUDGED[$key]} $blank"
    cell distill-then-dr_grpo-same-$n-j$key $then --steps 30 --student runs/taught-distill-half-$n-SEED/student
    cell distill-then-dr_grpo-twice-$n-j$key $then --student runs/taught-distill-$n-j25-SEED/student
  done
done
for n in 128 512; do
  few="--taught $n --judged 0.25"
  [ $n = 128 ] || few="--judged 0.25"
  cell distill-$n-j25 --algo distill $few
  cell constant-$n-j25 --similarity constant $few
  cell ril-$n-j25 $few
  cell D-alone-$n-j25 --teacher-use discriminator $few
done
run_study
