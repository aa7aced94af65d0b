#!/usr/bin/env bash
# When three questions of four have no answer key, or a fifth of the verdicts is wrong: who carries the signal?
source "$(dirname "$0")/study.sh"
study weak_judge "0 1 2 3 4"
AGAINST=ril-25,ril-wrong-20
NOTE="In every row the exported checkpoint was chosen on 300 validation questions with their full answer key."
cell ril-25 --judged 0.25
cell dr_grpo-25 --algo dr_grpo --judged 0.25
cell no-D-25 --similarity none --judged 0.25
cell constant-25 --similarity constant --judged 0.25
cell in-D-only-25 --teacher-use discriminator --judged 0.25
cell no-judge-in-D-only --teacher-use discriminator --judged 0
cell ril-wrong-20 --judge-wrong 0.2
cell no-D-wrong-20 --similarity none --judge-wrong 0.2
cell constant-wrong-20 --similarity constant --judge-wrong 0.2
cell dr_grpo-wrong-20 --algo dr_grpo --judge-wrong 0.2
run_study
