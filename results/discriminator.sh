#!/usr/bin/env bash
# Where D adds something beyond teacher rows, and where not, with a full judge (results/weak_judge.sh: with a weak one).
source "$(dirname "$0")/study.sh"
study discriminator "0 1 2 3 4"
AGAINST=ril
cell ril --algo ril
cell constant-reward --discriminator none --similarity constant
cell teacher-in-D-only --teacher-use discriminator
cell sft-right-replies --algo distill --right-only
cell oracle-look --discriminator none --similarity oracle
cell D-question --d-input question
cell D-picture --d-input picture
cell look-prompted-ceiling --algo dr_grpo --steps 0 --ask-prefix look
run_study
