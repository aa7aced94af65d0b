#!/usr/bin/env bash
# Teacher text for few questions: 8, 32, 128 of 512, or all; each seed has its own warm start and its own draw of the questions.
# Rows end in the share of questions with an answer key: j0, j25, j100. "same" has as many updates in all as RIL, "twice" twice as many;
# both begin where a row above ends (on more than ten cores: run the study again for those that came too soon). Distillation asks no judge, so j25 stands for j100 too. Rows of 32, warm start and Dr.GRPO are
# asked with blank pictures besides. Both losses of D, the gate and a full key are tried with 8 questions alone: 165 runs in all.
source "$(dirname "$0")/study.sh"
study taught "0 1 2 3 4"
PANELS=similarity,d_accuracy AGAINST=distill-half-8,distill-8-j0,distill-8-j25,distill-32-j25,distill-128-j25,distill-512-j25
NOTE="Checkpoint: rows j0 export the last step, as training had no answer key; the others the best of every 20th step on 300 validation questions, with their full key."
cell warm-start --algo dr_grpo --steps 0 --evaluated blank
cell dr_grpo-j25 --algo dr_grpo --judged 0.25 --evaluated blank
cell dr_grpo-j100 --algo dr_grpo

few="--taught 8 --judged 0"
cell distill-half-8 --algo distill --steps 30 $few
cell distill-8-j0 --algo distill $few
cell constant-8-j0 --similarity constant $few
cell ril-8-j0 $few
cell D-alone-8-j0 --teacher-use discriminator $few
cell D-alone-pairs-8-j0 --teacher-use discriminator --d-loss pairwise $few

few="--taught 8 --judged 0.25"
then="--algo dr_grpo --judged 0.25"
cell distill-8-j25 --algo distill $few
cell constant-8-j25 --similarity constant $few
cell ril-8-j25 $few
cell ril-pairs-8-j25 --d-loss pairwise $few
cell ril-gated-8-j25 --similarity gated $few
cell D-alone-8-j25 --teacher-use discriminator $few
cell distill-then-dr_grpo-same-8-j25 $then --steps 30 --student runs/taught-distill-half-8-SEED/student
cell distill-then-dr_grpo-twice-8-j25 $then --student runs/taught-distill-8-j25-SEED/student
cell ril-8-j100 --taught 8
cell D-alone-8-j100 --teacher-use discriminator --taught 8

few="--taught 32 --judged 0.25 --evaluated blank"
cell distill-32-j25 --algo distill $few
cell D-alone-32-j0 --teacher-use discriminator --taught 32 --judged 0 --evaluated blank
cell constant-32-j25 --similarity constant $few
cell ril-32-j25 $few
cell D-alone-32-j25 --teacher-use discriminator $few
cell distill-then-dr_grpo-twice-32-j25 $then --evaluated blank --student runs/taught-distill-32-j25-SEED/student
for n in 128 512; do
  few="--taught $n --judged 0.25"
  [ $n = 128 ] || few="--judged 0.25"
  cell distill-$n-j25 --algo distill $few
  cell constant-$n-j25 --similarity constant $few
  cell ril-$n-j25 $few
  cell D-alone-$n-j25 --teacher-use discriminator $few
done
run_study
