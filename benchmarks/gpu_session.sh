#!/usr/bin/env bash
# Everything about a GPU in one call of at most ten minutes. Results (gpu.json, voc_chain.json) and logs go to OUT, by
# default benchmarks/results; afterwards `python -m benchmarks.run_all --tables` writes them into docs/performance.md.
#
#   benchmarks/gpu_session.sh          the tests that need a GPU, gpu.py, then voc_chain.py in the time that is left
#   benchmarks/gpu_session.sh gpu      gpu.py alone, torch.compile and all
#   benchmarks/gpu_session.sh chain    voc_chain.py alone, with one round at its full length
#   benchmarks/gpu_session.sh tests    the tests alone
#
# Options of gpu.py and voc_chain.py may follow the word: benchmarks/gpu_session.sh chain --extra=--cuda-graphs
set -euo pipefail

MINUTES=${MINUTES:-9.5}  # in all
LISTS=${LISTS:-}  # folder with VOC's names (voc_trainaug.txt, voc_val.txt); empty: made-up names
PYTHON=${PYTHON:-}  # interpreter; empty: .venv/bin/python if it is there, else python3

cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "$PYTHON" ]; then
    PYTHON=python3
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
fi
export OUT=${OUT:-benchmarks/results}
export PYTHONUNBUFFERED=1
mkdir -p "$OUT"

left() { awk -v all="$MINUTES" -v gone="$SECONDS" -v share="$1" 'BEGIN { print (all - gone / 60) * share }'; }

tests() {
    "$PYTHON" -m pytest tests/test_gpu_paths.py tests/test_precision.py tests/test_sync.py tests/test_gpu_benchmarks.py \
        -k "gpu or graphs or skipped or synchron or replayed" --deselect \
        tests/test_gpu_benchmarks.py::test_every_topic_runs_and_its_results_are_kept 2>&1 | tee "$OUT/gpu_tests.log"
}

gpu() { "$PYTHON" -m benchmarks.gpu --minutes="$(left "$1")" "${@:2}" 2>&1 | tee "$OUT/gpu.log"; }

chain() {
    "$PYTHON" -m benchmarks.voc_chain --minutes="$(left 1)" --full-round ${LISTS:+"--lists=$LISTS"} "$@" 2>&1 \
        | tee "$OUT/voc_chain.log"
}

case ${1:-all} in
    tests) tests ;;
    gpu) gpu 1 "${@:2}" ;;
    chain) chain "${@:2}" ;;
    all)  # whatever one of them finds, the others run
        status=0
        tests || status=1
        gpu 0.5 || status=1
        chain || status=1
        exit $status ;;
    *) echo "error: unknown word '$1': give gpu, chain or tests, or nothing for all of them" >&2; exit 2 ;;
esac
