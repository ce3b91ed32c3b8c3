#!/usr/bin/env bash
# Real photographs: rows of the papers' ablation on VOC's animals, with 100 labels and a small pre-trained encoder, and
# supervised on all labels, for three split ids. About half a day of two cores; the rows baseline, full, dmt and ple of
# all ids come before the others:
#     scripts/ablations/voc-animals.sh DATA_ROOT
#     scripts/ablations/voc-animals.sh DATA_ROOT IDS=0 ROWS="baseline dmt" weights=FILE
#     scripts/ablations/voc-animals.sh DATA_ROOT JOBS=3        # on a GPU
# OUTPUT_DIR/voc-animals-ID/ROW becomes the run folder of a row. Interrupted, the same command goes on. Ends with the
# table. Numbers that are not named here are those of scripts/dmt_ple-voc-animals.sh and can be set in the same way.
set -euo pipefail

exp=${exp:-ablations-voc-animals}  # name of the experiment
IDS=${IDS:-0 1 2}  # random splits
JOBS=${JOBS:-1}  # ids that run side by side; on a CPU with OMP_NUM_THREADS=1
ROWS=${ROWS:-baseline full dmt ple ple-batch-statistics ple-no-conflict-reduction cbst beta}  # rows, in this order
baseline_arms=${baseline_arms:-b c l r}  # b, where cbst starts, and round 0 of l and r
ep_full=${ep_full:-7}  # epochs of "full", supervised on all labels: 2744 steps, about as many as b
betas=${betas:-0 0.05 0.15 0.3}  # increments of the rows beta-VALUE
online=${online:-0.9}  # the row online learns its own decisions above this confidence
source "$(dirname "${BASH_SOURCE[0]}")/../dmt_ple-voc-animals.sh"  # its numbers, for what is not named above

beta_ple=$beta seed_c=$seed_b seed_f=$seed_b
source "$(dirname "${BASH_SOURCE[0]}")/rows.sh"
run_ids voc-animals
