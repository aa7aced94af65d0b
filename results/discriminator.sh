#!/usr/bin/env bash
# Where D adds something beyond teacher rows, and where not: a full judge, then 75 % of the questions without an answer key.
source "$(dirname "$0")/study.sh"
study discriminator "0 1 2 3 4"
cell look-prompted-ceiling --algo dr_grpo --steps 0 --ask-prefix look
cell ril --algo ril
cell constant-reward --discriminator none --similarity constant
cell D-question --d-input question
cell D-picture --d-input picture
cell teacher-in-D-only --teacher-use discriminator
cell oracle-look --discriminator none --similarity oracle
cell sft-right-replies --algo distill --right-only
cell judged-25-dr_grpo --algo dr_grpo --judged 0.25
cell judged-25-no-D --discriminator none --similarity none --judged 0.25
cell judged-25-constant --discriminator none --similarity constant --judged 0.25
cell judged-25-ril --algo ril --judged 0.25
cell judged-25-in-D-only --teacher-use discriminator --judged 0.25
cell wrong-20-dr_grpo --algo dr_grpo --judge-wrong 0.2
cell wrong-20-ril --algo ril --judge-wrong 0.2
run_study
