#!/usr/bin/env bash
# Everything about a GPU in one call of at most ten minutes (MINUTES). Results (gpu.json, voc_chain.json) and logs go to
# OUT, by default benchmarks/results; afterwards `python -m benchmarks.run_all --tables` writes them into
# docs/performance.md. Where several calls can be had, each word in a call of its own measures more.
#
#   benchmarks/gpu_session.sh          the tests that need a GPU, gpu.py, then voc_chain.py in the time that is left
#   benchmarks/gpu_session.sh gpu      gpu.py alone, torch.compile and all
#   benchmarks/gpu_session.sh chain    voc_chain.py alone, with one round at its full length
#   benchmarks/gpu_session.sh tests    the tests alone
#   benchmarks/gpu_session.sh camvid   real training on CamVid (CAMVID_ROOT) with ResNet-50, three split ids: what ended in
#                                      time comes back as camvid.tgz; started again at once on the same machine, it goes on
#
# Options of gpu.py and voc_chain.py may follow the word: benchmarks/gpu_session.sh chain --extra=--no-fused-norm, or
# benchmarks/gpu_session.sh gpu --only compiled. A copy of the repository without .git gets its commit by COMMIT=...
set -euo pipefail

MINUTES=${MINUTES:-9.5}  # in all
CAMVID_ROOT=${CAMVID_ROOT:-}  # folder of CamVid in VOC layout, for the word camvid
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
    "$PYTHON" -m pytest -m gpu $(grep -l "mark.gpu" tests/test_*.py) 2>&1 | tee "$OUT/gpu_tests.log"
}

gpu() { "$PYTHON" -m benchmarks.gpu --minutes="$(left "$1")" "${@:2}" 2>&1 | tee "$OUT/gpu.log"; }

chain() {
    "$PYTHON" -m benchmarks.voc_chain --minutes="$(left 1)" --full-round ${LISTS:+"--lists=$LISTS"} "$@" 2>&1 \
        | tee "$OUT/voc_chain.log"
}

# Numbers of the environment go before these. The schedule is longer than the small network's: 3000 steps from random
# weights, of which a chain has 1500 in round 0.
camvid() {
    local status=0 out=runs/ablations-camvid-gpu seconds run runs=() packed
    if [ -z "$CAMVID_ROOT" ]; then echo "error: CAMVID_ROOT is not set; it is the folder of CamVid" >&2; exit 2; fi
    seconds=$(left 60)
    env dataset=camvid backbone="${backbone:-resnet50}" crop="${crop:-241 321}" ep0="${ep0:-300}" ep_b="${ep_b:-500}" \
        ep_full="${ep_full:-65}" ep="${ep:-4}" val0="${val0:-250}" val="${val:-108}" JOBS="${JOBS:-3}" CHECK="${CHECK:-0}" \
        PYTHON="$PYTHON" OUTPUT_DIR="$out" timeout --kill-after=20 "${seconds%.*}" \
        scripts/ablations/camvid.sh "$CAMVID_ROOT" 2>&1 | tee "$OUT/camvid.log" || status=$?
    for run in "$out"/camvid-*/*/report/index.html; do  # written when a row has come to its end
        if [ -f "$run" ]; then runs+=("${run%/report/index.html}"); fi
    done
    if [ ${#runs[@]} != 0 ]; then
        packed=$(mktemp -d)
        "$PYTHON" -m tools.tables "${runs[@]}" --table rounds --summary "$packed" | tee "$OUT/camvid.txt" || status=1
        tar czf "$OUT/camvid.tgz" -C "$packed" . -C "$PWD/$out" $(cd "$out" && ls camvid-*.txt camvid-*/*/report/index.html)
        rm -r "$packed"
    fi
    return $status
}

case ${1:-all} in
    tests) tests ;;
    gpu) gpu 1 "${@:2}" ;;
    chain) chain "${@:2}" ;;
    camvid) camvid ;;
    all)  # whatever one of them finds, the others run
        status=0
        chain --prepare-only > /dev/null &  # processors' work, while the tests keep the GPU busy
        prepared=$!
        tests || status=1
        wait "$prepared" || status=1
        gpu 0.5 || status=1
        chain || status=1
        exit $status ;;
    *) echo "error: unknown word '$1': give gpu, chain, tests or camvid, or nothing for the first three" >&2; exit 2 ;;
esac
