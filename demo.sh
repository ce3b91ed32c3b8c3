#!/usr/bin/env bash
# The whole method on generated images, on a CPU, in minutes: two small networks from random weights learn from a few
# labels, then teach each other in three rounds of DMT, two of them with PLE; a third one learns from the same labels
# alone. Ends with a table and a picture. Nothing is downloaded but, on the first call, the Python packages.
#     ./demo.sh        ./demo.sh SEED=1
set -euo pipefail
ARMS_PARALLEL=${ARMS_PARALLEL:-1}  # both arms at the same time, and b beside them; 0: one stage after the other
MIXED_PRECISION=${MIXED_PRECISION:-0}  # 1: 16-bit network, on a GPU

SEED=${SEED:-0}  # of the images, of the split id (SEED modulo 3) and of every training
images=${images:-800}  # training images
val_images=${val_images:-80}  # validation images
size=${size:-80}  # largest height and width of an image in pixels

dataset=shapes
split=${split:-50}  # 1/50 of the images are labelled
suffix=-$SEED
exp=${exp:-demo${suffix%-0}}  # name of the experiment: demo, demo-1, ...

backbone=${backbone:-small}  # or timm/NAME, resnet50, resnet101
weights=${weights:-none}  # first weights of the backbone: a file, or none for random ones
coco_arms=
coco_weights=
crop=${crop:-65 65}  # height and width of the training crops
test_size=${test_size:-81 81}  # images are padded to this for validation and labelling
weight_decay=${weight_decay:-0.0005}  # of SGD, in round 0 and in the rounds

# Round 0, supervised, each arm on its subset of the labels:
ep0=${ep0:-100}  # epochs
batch0=${batch0:-8}  # images a step
lr0=${lr0:-0.04}  # initial learning rate
val0=${val0:-100}  # steps between validations

# The supervised baseline, on all labels of the split, with more steps than an arm has in all its rounds:
ep_b=${ep_b:-700}  # epochs

# Rounds of mutual training, one for each ratio:
# (three, not the papers' five, to save time; in so short a run the least sure fifth of the pixels is wrong too often)
ratios=${ratios:-0.4 0.6 0.8}  # share of each class's pixels that gets pseudo labels
beta=${beta-0.15}  # increment of PLE, from round 2 on; empty: no PLE, plain DMT
ep=${ep:-3}  # epochs a round
batch_labeled=${batch_labeled:-2}  # labelled images a step
batch_pseudo=${batch_pseudo:-6}  # pseudo-labelled images a step
lr=${lr:-0.04}  # initial learning rate of every round
gamma1=${gamma1:-5}  # dynamic weight where the arms agree
gamma2=${gamma2:-5}  # and where they disagree and the teacher is surer
val=${val:-100}  # steps between validations
batch_labeling=${batch_labeling:-8}  # images a forward pass when labelling

source "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/scripts/rounds.sh"

case $SEED in
    *[!0-9]* | 0?*) fail "SEED is '$SEED'; it must be a whole number, as in $0 SEED=1" ;;
esac

# The images and their split:
DATA_ROOT=${DATA_ROOT:-$OUTPUT_DIR/data}  # where they go
id=${id:-$((SEED % 3))}  # which of the random splits
seed_b=$((10 * SEED + 1)) seed_l=$((10 * SEED + 2)) seed_r=$((10 * SEED + 3))

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # two stages run side by side instead
all_options=(--crop-size $crop --test-size $test_size --workers=0)
if [ -z "$DRY_RUN" ]; then source "${root}scripts/setup.sh"; fi
SECONDS=0  # bash counts them on

prepare() {
    module data.synthetic --out="$DATA_ROOT" --train="$images" --val="$val_images" --seed="$SEED" \
        --size "$size" "$size" --workers=2
    call "$PYTHON" "${root}generate_splits.py" --dataset=$dataset --data-root="$DATA_ROOT" --divisors "$split"
    call "$PYTHON" "${root}dms_sample.py" --dataset=$dataset --data-root="$DATA_ROOT" --splits "$split"
}
start l r

begin b train_labeled "$(name 0 b)" b "$split" "$ep_b" "$seed_b" "$val0"  # beside everything else
round0_of_both l "$split-l" r "$split-r"

round=0
for ratio in $ratios; do
    round=$((round + 1))
    begin label-l-$round label $round l "$ratio"
    begin label-r-$round label $round r "$ratio"  # with its checkpoint of the round before, as l does
    finish label-l-$round label-r-$round
    begin r-$round train $round r l
    begin l-$round train $round l r
    finish r-$round l-$round
    report
done
finish b
report

print_results
module tools.summarize "$OUTPUT_DIR" --exp="$exp"
if [ -z "$DRY_RUN" ]; then
    mkdir -p "$OUTPUT_DIR/logs"
    times > "$OUTPUT_DIR/logs/times.txt"  # in a pipe it would be another shell's
    computed=$(tail -n 1 "$OUTPUT_DIR/logs/times.txt")
    echo "The demo took $SECONDS s; its processes computed for $computed (user, system)."
fi
