#!/usr/bin/env bash
# Real street scenes: CamVid at 1/8 of the labels, supervised, DMT and DMT+PLE, and supervised on all labels, for three
# split ids; from random weights, so nothing is downloaded. On a CPU a small network at half the resolution; on a GPU:
#     scripts/ablations/camvid.sh DATA_ROOT        scripts/ablations/camvid.sh DATA_ROOT IDS=0 ROWS="baseline dmt"
#     scripts/ablations/camvid.sh DATA_ROOT dataset=camvid backbone=resnet101 crop="241 321" JOBS=1
# OUTPUT_DIR/camvid-ID/ROW becomes the run folder of a row. Interrupted, the same command goes on. Ends with the table.
# Numbers that are not named here are those of scripts/dmt_ple-camvid.sh and can be set in the same way, as in ep=1.
set -euo pipefail

exp=${exp:-ablations-camvid}  # name of the experiment
IDS=${IDS:-0 1 2}  # random splits
JOBS=${JOBS:-2}  # ids that run side by side
ROWS=${ROWS:-baseline full dmt ple}  # rows to run, in this order; those of voc.sh are there, too
dataset=${dataset:-$(dirname "${BASH_SOURCE[0]}")/camvid-half.yaml}  # or camvid: at full resolution
crop=${crop:-97 129}  # height and width of the training crops
ep0=${ep0:-260}  # epochs of l and r: 1300 steps; the launcher's 500 are far from enough to teach anyone
ep_b=${ep_b:-352}  # epochs of b, on the labels of the split: 2112 steps, as many as round 0 and the rounds together
ep_full=${ep_full:-46}  # epochs of "full", supervised on all labels: as many steps
ep=${ep:-2}  # epochs a round: 162 steps
batch_labeled=${batch_labeled:-4}  # labelled images a step
batch_pseudo=${batch_pseudo:-4}  # pseudo-labelled images a step
val=${val:-54}  # steps between validations in the rounds
baseline_arms=${baseline_arms:-b l r}  # b and round 0 of l and r
betas=${betas:-0 0.05 0.1 0.15 0.2 0.3 0.5}  # increments of the rows beta-VALUE
online=${online:-0.9}  # the row online learns its own decisions above this confidence
source "$(dirname "${BASH_SOURCE[0]}")/../dmt_ple-camvid.sh"  # its numbers, for what is not named above

beta_ple=$beta seed_c=$seed_b seed_f=$seed_b
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # ids run side by side instead
all_options=(--crop-size $crop)
source "$(dirname "${BASH_SOURCE[0]}")/rows.sh"
run_ids camvid
