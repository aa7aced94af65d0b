#!/usr/bin/env bash
# The numbers of docs/lab.md: RIL as it is and with the solutions of the exercises, in the demo's setting. A solution runs
# in a git worktree of this commit with its patch applied (under runs/lab-trees); its runs lie in runs beside all others.
source "$(dirname "$0")/study.sh"
study lab "0 1 2 3 4"
AGAINST=ril PANELS=similarity,answer,d_accuracy
SHARED="--judged 0.25 $SHARED"
NOTE="A row beside ril is this commit with docs/solutions/ROW.patch applied (d-high, d-low: d.patch), hence -dirty."

[ -n "${STORED:-}" ] || git diff --quiet HEAD -- "*.py" || { echo "error: commit your changes first: ril would run them, the solutions not" >&2; exit 2; }

solved() {  # ROW PATCH FLAGS...: a cell whose runs take the code of this commit with that patch
  TREE=runs/lab-trees/$2
  if [ -z "${STORED:-}" ]; then
    git worktree remove --force "$TREE" 2>/dev/null || git worktree prune
    git worktree add --quiet --detach "$TREE" HEAD
    git -C "$TREE" apply "$PWD/docs/solutions/$2.patch"
  fi
  cell "$1" "${@:3}"
  TREE=
}

cell ril
solved a a --teacher-use denominator-1
solved b b
solved c c
solved d-high d --d-lr 1e-2
solved d-low d --d-lr 2e-6
solved e e
run_study
[ -n "${STORED:-}" ] || for tree in runs/lab-trees/*; do git worktree remove --force "$tree"; done
