# Sourced by the studies in this folder. A study is a list of cells; a cell is a name and train.py's flags (SEED in them is the seed). Every cell runs once
# per seed, from the shipped warm start of that seed (results/students), one single-thread process per core. Rerunning a
# study skips what is there.
#
#     study main "0 1 2 3 4"        # name and seeds
#     cell ril --algo ril           # one row of the table
#     run_study                     # runs, then collects (results/collect.py) results/NAME.json, NAME.md and NAME.png
#
# STORED=1 bash results/main.sh compares the numbers in results/main.json again, without runs.
#
# It is a command too: several seeds of Dr.GRPO, distillation and RIL (or METHODS) with your flags for all, and the same table, in
# runs/NAME. Paths are relative to the repository. On GPUs: CORES=1 LAUNCH="torchrun --nproc_per_node 8".
#
#     bash results/study.sh mine "0 1 2" --data mine.jsonl --student qwen2.5-vl-7b --teachers a --teachers-file said.jsonl
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-.venv/bin/python}
SHARED="--test-questions 2000 --eval-draws 2 --evaluated after --eval-every 20 --checkpoint-every 60"
CORES=${CORES:-$(env -u OMP_NUM_THREADS nproc 2>/dev/null || sysctl -n hw.ncpu)}  # nproc obeys that variable; macOS has none
LAUNCH=${LAUNCH:-$PYTHON}
export PYTHON LAUNCH CORES OMP_NUM_THREADS=1

study() { NAME=$1; SEEDS=$2; CELLS=(); JOBS=$(mktemp); export JOBS; }

cell() {  # NAME FLAGS...; the code is that of folder TREE, where that is set (results/lab.sh)
  CELLS+=("$1")
  for seed in $SEEDS; do
    echo "${TREE:+$TREE/}train.py $NAME-$1-$seed --seed $seed $SHARED ${*:2}" | sed "s/SEED/$seed/g; s/ *$//" >>"$JOBS"
  done
}

one_job() {  # FILE NAME FLAGS...: one run; prints how many of the study's runs are there and about how long the rest takes
  mkdir -p runs
  $LAUNCH "$1" --name "${@:2}" >"runs/$2.log" 2>&1 || { echo "failed: $2, see runs/$2.log" >&2; return 1; }
  done=0
  while read -r _ name _; do [ -e "runs/$name/summary.json" ] && done=$((done + 1)); done <"$JOBS"
  total=$(wc -l <"$JOBS")
  echo "$(date +%T)  $done of $total runs, $2 ready, about $(((total - done) * (SECONDS + 1) / $CORES / 60)) minutes left"
}
export -f one_job

collect() {  # NAME CELLS SEEDS
  "$PYTHON" -m results.collect "$1" --cells "$2" --seeds "${3// /,}" --against "${AGAINST:-}" --panels "${PANELS:-similarity,answer}" \
    --into "${INTO:-results}" --note "${NOTE:-}" ${STORED:+--stored}
}

run_study() {
  [ -n "${STORED:-}" ] || xargs -P "$CORES" -L 1 bash -c 'SECONDS=0; one_job "$@"' _ <"$JOBS" || echo "some runs failed: the table names them" >&2
  collect "$NAME" "$(IFS=,; echo "${CELLS[*]}")" "$SEEDS"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  [ $# -gt 2 ] || { echo 'error: give a name, seeds and flags: bash results/study.sh mine "0 1 2" --data mine.jsonl' >&2; exit 2; }
  study "$1" "$2"
  SHARED="" AGAINST=${AGAINST:-ril} INTO="runs/$NAME"
  mkdir -p "$INTO"
  for method in ${METHODS:-dr_grpo distill ril}; do cell "$method" --algo "$method" "${@:3}"; done
  run_study
fi
