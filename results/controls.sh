#!/usr/bin/env bash
# The switches of the paper's ablations, one at a time, against its own choices (first row).
source "$(dirname "$0")/study.sh"
study controls "0 1 2"
AGAINST=ril PANELS=differences
cell ril --algo ril
cell D-frozen --d-lr 0
cell D-not-pretrained --d-steps 0
cell similarity-three --similarity three
cell similarity-levels --similarity levels
cell similarity-continuous --similarity continuous
cell answer-none --judged 0
cell similarity-none --similarity none
cell mu-2 --mu 2
cell mu-4 --mu 4
cell beta-0 --beta 0
cell beta-1 --beta 1
cell teacher-baseline --teacher-use baseline
cell teacher-positive --teacher-use positive
cell teacher-denominator-1 --teacher-use denominator-1
cell cached-1 --teacher-samples 1
cell cached-2 --teacher-samples 2
cell frozen-embeddings --frozen vision,embeddings
cell frozen-attention --frozen vision,attention
cell frozen-mlp --frozen vision,mlp
cell gail --algo gail
run_study
