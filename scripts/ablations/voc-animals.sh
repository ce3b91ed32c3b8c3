#!/usr/bin/env bash
# Real photographs: rows of the papers' ablation on VOC's animals, with 100 labels and a small pre-trained encoder, and
# supervised on all labels, for three split ids. About half a day of two cores; the rows baseline, full, dmt and ple of
# all ids come before the others:
#     scripts/ablations/voc-animals.sh DATA_ROOT
#     IDS=0 ROWS="baseline dmt" weights=FILE scripts/ablations/voc-animals.sh DATA_ROOT
#     JOBS=3 scripts/ablations/voc-animals.sh DATA_ROOT        # on a GPU
# OUTPUT_DIR/voc-animals-ID/ROW becomes the run folder of a row. Interrupted, the same command goes on. Ends with the
# table. Numbers that are not named here are those of scripts/dmt_ple-voc-animals.sh and can be set in the same way.
set -euo pipefail

IDS=${IDS:-0 1 2}  # random splits
JOBS=${JOBS:-1}  # ids that run side by side; on a CPU with OMP_NUM_THREADS=1
ID=${ID:-}  # this id alone, into OUTPUT_DIR itself
ROWS=${ROWS:-baseline full dmt ple ple-batch-statistics ple-no-conflict-reduction cbst beta}  # rows, in this order
baseline_arms=${baseline_arms:-b c l r}  # b, where cbst starts, and round 0 of l and r
ep_full=${ep_full:-7}  # epochs of "full", supervised on all labels: 2744 steps, about as many as b
betas=${betas:-0 0.05 0.15 0.3}  # increments of the rows beta-VALUE
online=${online:-0.9}  # the row online learns its own decisions above this confidence
SECONDS_PER_STEP=${SECONDS_PER_STEP:-0.45}  # for the estimate: two idle cores (0.35 s), and labelling and validation

id=${ID:-0} exp=ablations-voc-animals
eval "$(sed '/^source /,$d' "$(dirname "${BASH_SOURCE[0]}")/../dmt_ple-voc-animals.sh")"  # its numbers, and DATA_ROOT
seed_c=$seed_b seed_f=$seed_b gamma=$gamma1 beta_ple=$beta images=3131 labeled=voc-animals/31=100
export DATA_ROOT=${DATA_ROOT:-}
REPORT=${REPORT:-end}
source "$(dirname "${BASH_SOURCE[0]}")/rows.sh"
first_options=(--backbone="$backbone" ${output_stride:+--output-stride="$output_stride"}
    ${weights:+--weights="$weights"})
estimate hours
make_lists "$RUNS/lists"

if [ -z "$ID" ]; then
    first= later=
    for row in $ROWS; do
        case $row in
            baseline | full | dmt | ple) first+=" $row" ;;
            *) later+=" $row" ;;
        esac
    done
    run_ids voc-animals "$first" "$later"
    exit
fi

check_numbers
OUTPUT_DIR=$RUNS/baseline
check_run $baseline_arms
read -ra rows <<< "$ROWS"
run_rows "${rows[@]}"
