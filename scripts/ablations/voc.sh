#!/usr/bin/env bash
# The papers' ablations: PASCAL VOC 2012 with 1/50 of the labels, split id 2, all arms from COCO weights.
#     scripts/ablations/voc.sh        scripts/ablations/voc.sh ROWS="baseline dmt ple"
# OUTPUT_DIR/ROW becomes the run folder of a row. With several GPUs: first ROWS="baseline dmt", then one launcher a GPU,
# each with a part of the other rows.
set -euo pipefail

dataset=${dataset:-voc}  # its spec: a built-in one's name, or the path of a YAML file
split=${split:-50}  # 1/50 of the images are labelled
id=${id:-2}  # which of the random splits
exp=${exp:-ablations-$dataset-$split-$id}  # name of the experiment
ROWS=${ROWS:-baseline cbst dst dmt naive flip online ple ple-no-conflict-reduction beta}  # rows to run, in this order

coco_arms=${coco_arms-c f l r}  # arms from COCO weights
coco_weights=${coco_weights-voc_coco_resnet101.pt}  # from prepare_coco.sh; empty: no arm has COCO weights
seed_c=${seed_c:-1}  # of every random draw of arm c
seed_f=${seed_f:-$id}  # of every random draw of arm f
seed0_l=${seed0_l:-1}  # of arm l in round 0
seed0_r=${seed0_r:-2}  # of arm r in round 0
seed_l=${seed_l:-2}  # of arm l in the rounds
seed_r=${seed_r:-1}  # of every random draw of arm r
weight_decay=${weight_decay:-0.0005}  # of SGD, in round 0 and in the rounds

# Round 0, the row baseline with c on the whole split, l and r on its halves; and the row full with f on all labels:
baseline_arms=${baseline_arms:-c l r}
ep0=${ep0:-134}  # epochs
ep_full=${ep_full:-30}  # epochs of f, those of the papers' oracle
batch0=${batch0:-8}  # images a step
lr0=${lr0:-0.002}  # initial learning rate
val0=${val0:-220}  # steps between validations

# Rounds of mutual training, one for each ratio:
ratios=${ratios:-0.2 0.4 0.6 0.8 1.0}  # share of each class's pixels that gets pseudo labels
ep=${ep:-4}  # epochs a round
batch_labeled=${batch_labeled:-1}  # labelled images a step
batch_pseudo=${batch_pseudo:-7}  # pseudo-labelled images a step
lr=${lr:-0.001}  # initial learning rate of every round
gamma=${gamma:-5}  # both exponents of the dynamic weight; cbst has 0
val=${val:-500}  # steps between validations
batch_labeling=${batch_labeling:-8}  # images a forward pass when labelling
beta_ple=${beta_ple:-0.15}  # increment of PLE, from round 2 on
betas=${betas:-0 0.05 0.1 0.15 0.2 0.3 0.5}  # increments of the rows beta-VALUE
online=${online:-0.9}  # the row online learns its own decisions above this confidence

source "$(dirname "${BASH_SOURCE[0]}")/../rounds.sh"
source "$(dirname "${BASH_SOURCE[0]}")/rows.sh"
RUNS=$OUTPUT_DIR
start $baseline_arms
run_rows $ROWS
