#!/usr/bin/env bash
# The zero-reward trap: dead groups, and the questions that the warm start almost never answers (at most 5 % of 64 draws).
# The paper's claim is that teacher rows are the way out.
source "$(dirname "$0")/study.sh"
study trap "0 1 2 3 4"
cell warm-start --algo dr_grpo --steps 0 --eval-draws 64
cell grpo --algo grpo --eval-draws 8
cell dr_grpo --algo dr_grpo --eval-draws 8
cell distill --algo distill --eval-draws 8
cell no-D --discriminator none --similarity none --eval-draws 8
cell ril --algo ril --eval-draws 8
run_study
