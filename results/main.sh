#!/usr/bin/env bash
# The method against its baselines: same questions, same warm starts, same number of updates, same evaluation.
# Teacher A is tiny-qwen-teacher, B is tiny-internvl-teacher (another family, tokenizer and way of speaking).
source "$(dirname "$0")/study.sh"
A=tiny-qwen-teacher B=tiny-internvl-teacher
study main "0 1 2 3 4"
AGAINST=ril-A
cell warm-start --algo dr_grpo --steps 0
cell grpo --algo grpo
cell dr_grpo --algo dr_grpo
cell dr_grpo-2G --algo dr_grpo --group-size 16
cell distill-A --algo distill --teachers $A
cell no-D-A --similarity none --teachers $A
cell ril-A --algo ril --teachers $A
cell ril-B --algo ril --teachers $B
cell ril-A+B --algo ril --teachers $A,$B
cell teacher-A --algo dr_grpo --steps 0 --student results/teachers/$A
cell teacher-B --algo dr_grpo --steps 0 --student results/teachers/$B
run_study
