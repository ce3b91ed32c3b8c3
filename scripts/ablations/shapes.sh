#!/usr/bin/env bash
# The rows of the papers' ablation table on generated images, for several seeds, on CPUs: what they differ by in small.
#     scripts/ablations/shapes.sh        scripts/ablations/shapes.sh SEEDS="0 1" ROWS="baseline dmt"
# OUTPUT_DIR/seed-N/ROW becomes the run folder of a row. Interrupted, the same command goes on.
set -euo pipefail
MIXED_PRECISION=${MIXED_PRECISION:-0}  # 1: 16-bit network, on a GPU
KEEP=${KEEP:-1}  # predictions of every round, to see what was forgotten; 0: remove what has served

SEEDS=${SEEDS:-0 1 2 3 4}  # each has its own images, split and trainings
JOBS=${JOBS:-2}  # seeds that run side by side
ROWS=${ROWS:-baseline cbst dst dmt naive flip online ple ple-no-conflict-reduction beta}  # rows to run, in this order
images=${images:-400}  # training images
val_images=${val_images:-80}  # validation images
size=${size:-80}  # largest height and width of an image in pixels

dataset=shapes
split=${split:-25}  # 1/25 of the images are labelled
exp=${exp:-ablations-shapes}  # name of the experiment
backbone=${backbone:-small}  # or resnet101, resnet50, timm/NAME
weights=${weights:-none}  # first weights of the backbone: a file, or none for random ones
crop=${crop:-65 65}  # height and width of the training crops
test_size=${test_size:-81 81}  # images are padded to this for validation and labelling
coco_arms=
coco_weights=
weight_decay=${weight_decay:-0.0005}  # of SGD, in round 0 and in the rounds

# Round 0, the row baseline with b and c on the whole split, l and r on its halves; the row full with f on all labels:
baseline_arms=${baseline_arms:-b c l r}
ep0=${ep0:-100}  # epochs
ep_b=${ep_b:-390}  # epochs of b: as many steps as a whole chain
ep_full=${ep_full:-16}  # epochs of f, about as many steps
batch0=${batch0:-8}  # images a step
lr0=${lr0:-0.04}  # initial learning rate
val0=${val0:-100}  # steps between validations

# Rounds of mutual training, one for each ratio:
ratios=${ratios:-0.4 0.6 0.8}  # share of each class's pixels that gets pseudo labels
ep=${ep:-3}  # epochs a round
batch_labeled=${batch_labeled:-2}  # labelled images a step
batch_pseudo=${batch_pseudo:-6}  # pseudo-labelled images a step
lr=${lr:-0.04}  # initial learning rate of every round
gamma=${gamma:-5}  # both exponents of the dynamic weight; cbst has 0
val=${val:-96}  # steps between validations
batch_labeling=${batch_labeling:-8}  # images a forward pass when labelling
beta_ple=${beta_ple:-0.15}  # increment of PLE, from round 2 on
betas=${betas:-0 0.05 0.1 0.15 0.2 0.3 0.5}  # increments of the rows beta-VALUE
online=${online:-0.9}  # the row online learns its own decisions above this confidence

source "$(dirname "${BASH_SOURCE[0]}")/../rounds.sh"
gamma1=$gamma gamma2=$gamma
CHECK=0  # the images are made by the launcher
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # seeds run side by side instead
source "$(dirname "${BASH_SOURCE[0]}")/rows.sh"
all_options+=(--crop-size $crop --test-size $test_size --workers=0)

# numbers_of SEED: its own images, split and seeds.
numbers_of() {
    id=$(($1 % 3)) seed_b=$((10 * $1 + 1)) seed_l=$((10 * $1 + 2)) seed_r=$((10 * $1 + 3))
    seed_c=$seed_b seed_f=$seed_b
    DATA_ROOT=$OUTPUT_DIR/data-$1
    module data.synthetic --out="$DATA_ROOT" --train="$images" \
        --val="$val_images" --seed="$1" --size "$size" "$size" --workers=1
    call "$PYTHON" "${root}generate_splits.py" --dataset=$dataset --data-root="$DATA_ROOT" --divisors "$split"
    call "$PYTHON" "${root}dms_sample.py" --dataset=$dataset --data-root="$DATA_ROOT" --splits "$split"
}

for number in $SEEDS; do
    case $number in *[!0-9]* | 0?*) fail "a seed is '$number'; seeds are whole numbers, as in $0 SEEDS='0 1'" ;; esac
done
start $baseline_arms
run_all seed $SEEDS
