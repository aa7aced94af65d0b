#!/usr/bin/env bash
# Late decay: loops of 150 steps (main: 60). Does the last student fall behind the one that validation chose, does D win
# the race, and what mends it: levels, no negative teacher rows? "last" stands beside the exported student in the table.
source "$(dirname "$0")/study.sh"
study stability "0 1 2"
AGAINST=ril-60 PANELS=similarity,d_accuracy
cell ril-60 --evaluated all --test-questions 1000
long() { cell "$1" --steps 150 --evaluated all --test-questions 1000 "${@:2}"; }
long ril
long ril-levels --similarity levels
long ril-positive --teacher-use positive
run_study
