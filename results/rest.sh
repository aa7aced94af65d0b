#!/usr/bin/env bash
# Should D rest when it knows its few texts by heart (engine/unseen.py)? Rows of results/taught.sh, whose D rests, against the same
# with a D that never does (D_GAP of config.py out of reach, in a git worktree of this commit). Run results/taught.sh first: its rows are linked.
source "$(dirname "$0")/study.sh"
study rest "0 1 2 3 4"
AGAINST=D-alone-8-j0,ril-8-j25 PANELS=similarity,d_accuracy
NOTE="Rows never-* are this commit with D_GAP = 9 in config.py, hence -dirty."
tree=runs/rest-tree
if [ -z "${STORED:-}" ]; then
  git worktree remove --force $tree 2>/dev/null || git worktree prune
  git worktree add --quiet --detach $tree HEAD
  sed -i.before 's/^D_GAP, D_LOOKS = 0.1, 3/D_GAP, D_LOOKS = 9.0, 3/' $tree/config.py
  grep -q "^D_GAP, D_LOOKS = 9.0" $tree/config.py || { echo "error: no D_GAP to change in config.py" >&2; exit 2; }
  for seed in $SEEDS; do
    for row in D-alone-8-j0 ril-8-j25; do ln -sfn taught-$row-$seed runs/rest-$row-$seed; done
  done
fi
cell D-alone-8-j0 --teacher-use discriminator --taught 8 --judged 0
TREE=$tree cell never-D-alone-8-j0 --teacher-use discriminator --taught 8 --judged 0
cell ril-8-j25 --taught 8 --judged 0.25
TREE=$tree cell never-ril-8-j25 --taught 8 --judged 0.25
run_study
[ -n "${STORED:-}" ] || git worktree remove --force $tree
