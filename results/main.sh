#!/usr/bin/env bash
# The method against its baselines: same questions, same warm starts, same number of updates, same evaluation.
source "$(dirname "$0")/study.sh"
study main "0 1 2 3 4"
cell warm-start --steps 0 --algo dr_grpo
cell grpo --algo grpo
cell dr_grpo --algo dr_grpo
cell dr_grpo-2G --algo dr_grpo --group-size 16
cell distill --algo distill
cell no-D --discriminator none --similarity none
cell ril --algo ril
run_study
