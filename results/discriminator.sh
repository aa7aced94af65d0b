#!/usr/bin/env bash
# Where D adds something beyond teacher rows, and where not, with a full judge (results/weak_judge.sh: with a weak one).
# sft-then-dr_grpo begins where sft-replies ends: it has had twice the updates of the others.
source "$(dirname "$0")/study.sh"
study discriminator "0 1 2 3 4"
AGAINST=ril
cell ril --algo ril
cell constant-reward --similarity constant
cell teacher-in-D-only --teacher-use discriminator
cell sft-replies --algo distill
cell sft-right-replies --algo distill --teacher-use right
cell sft-then-dr_grpo --algo dr_grpo --student runs/discriminator-sft-replies-SEED/student
cell oracle-look --similarity oracle
cell D-question --d-input question
cell D-picture --d-input picture
cell look-prompted-ceiling --algo dr_grpo --steps 0 --evaluated look
run_study
