#!/usr/bin/env bash
# The papers' ablations: PASCAL VOC 2012 with 1/50 of the labels, split id 2, all arms from COCO weights.
#     scripts/ablations/voc.sh        ROWS="baseline dmt ple" scripts/ablations/voc.sh
# OUTPUT_DIR/ROW becomes the run folder of a row. With several GPUs: first ROWS="baseline dmt", then one launcher a GPU,
# each with a part of the other rows.
set -euo pipefail

dataset=${dataset:-voc}
split=${split:-50}  # 1/50 of the images are labelled
id=${id:-2}  # which of the random splits
exp=${exp:-ablations-$dataset-$split-$id}  # name of the experiment
ROWS=${ROWS:-baseline cbst dst dmt naive flip online ple ple-no-conflict-reduction beta}  # rows to run, in this order

coco_arms=${coco_arms-c f l r}  # arms from COCO weights
coco_weights=${coco_weights-voc_coco_resnet101.pt}  # from prepare_coco.sh; empty: no arm has COCO weights
seed_c=${seed_c:-1}
seed_f=${seed_f:-$id}
seed0_l=${seed0_l:-1}  # in round 0
seed0_r=${seed0_r:-2}
seed_l=${seed_l:-2}  # in the rounds
seed_r=${seed_r:-1}
weight_decay=${weight_decay:-0.0005}

# Round 0, the row baseline: c on the whole split, l and r on its halves; and the row full, f on all labels.
baseline_arms=${baseline_arms:-c l r}
ep0=${ep0:-134}  # epochs
ep_full=${ep_full:-30}  # epochs of f, those of the papers' oracle
batch0=${batch0:-8}
lr0=${lr0:-0.002}
val0=${val0:-220}  # steps between validations

# Rounds, one for each ratio:
ratios=${ratios:-0.2 0.4 0.6 0.8 1.0}  # share of each class's pixels that gets pseudo labels
ep=${ep:-4}  # epochs a round
batch_labeled=${batch_labeled:-1}  # labelled images a step
batch_pseudo=${batch_pseudo:-7}  # pseudo-labelled images a step
lr=${lr:-0.001}
gamma=${gamma:-5}  # both exponents of the dynamic weight; cbst has 0
val=${val:-500}  # steps between validations
batch_labeling=${batch_labeling:-8}  # images a forward pass when labelling
beta_ple=${beta_ple:-0.15}  # increment of PLE, from round 2 on
previous_statistics=${previous_statistics:-running}  # of PLE's previous network; batch: of each batch, as released
betas=${betas:-0 0.05 0.1 0.15 0.2 0.3 0.5}  # increments of the rows beta-VALUE
online=${online:-0.9}  # the row online learns its own decisions above this confidence

images=${images:-10582}  # training images, for the estimate
# The authors state 8 hours for a DMT run on one RTX 2080 Ti; that of dmt_ple-voc-20-1.sh has 75400 steps.
SECONDS_PER_STEP=${SECONDS_PER_STEP:-0.38}  # for the estimate, with the step's share of labelling and validation

source "$(dirname "${BASH_SOURCE[0]}")/rows.sh"
estimate "GPU hours"
check_numbers
OUTPUT_DIR=$RUNS/baseline
check_run $baseline_arms
read -ra rows <<< "$ROWS"
run_rows "${rows[@]}"
