#!/usr/bin/env bash
# DMT+PLE on your own images, described by the spec that tools.new_dataset writes (docs/own_data.md):
#     scripts/dmt_ple-own.sh datasets/weeds/dataset.yaml
# The arms l and r differ by their seeds and by the labelled images they see in round 0: two overlapping subsets, which
# dms_sample.py makes beside the lists. On a CPU add backbone=small.
set -euo pipefail
positional=dataset

dataset=${dataset:-}  # the spec, a YAML file; may be given as an argument
split=${split:-all}  # the lists SPLIT_labeled_ID.txt and SPLIT_unlabeled_ID.txt
id=${id:-0}  # which of the random splits
data_name=$(basename "${dataset%.y*ml}")
if [ "$data_name" = dataset ]; then data_name=$(basename "$(dirname "$(realpath -m "$dataset")")"); fi
exp=${exp:-$data_name}  # name of the experiment; empty: the name of the spec, or of its folder

backbone=${backbone:-resnet101}  # or resnet50, timm/NAME, or small for a CPU
weights=${weights:-}  # empty: ImageNet weights, downloaded (small: none); none: random; or a file
coco_arms=${coco_arms:-l r}  # arms from COCO weights, if there are such
coco_weights=${coco_weights-}  # COCO weights made for your number of classes; empty: no arm has COCO weights
halves=${halves:-1}  # 0: both arms see all labelled images in round 0, and differ by their seeds only
seed_l=${seed_l:-1}  # of every random draw of arm l
seed_r=${seed_r:-2}  # of every random draw of arm r
weight_decay=${weight_decay:-0.0005}  # of SGD, in round 0 and in the rounds

# Round 0, supervised:
ep0=${ep0:-200}  # epochs: passes over the labelled images; about 4000 steps are good
batch0=${batch0:-8}  # images a step
lr0=${lr0:-}  # empty: 0.002, from random weights 0.02
val0=${val0:-200}  # steps between validations

# Rounds of mutual training, one for each ratio:
ratios=${ratios:-0.2 0.4 0.6 0.8 1.0}  # share of each class's pixels that gets pseudo labels
beta=${beta-0.15}  # increment of PLE, from round 2 on; empty: no PLE, plain DMT
ep=${ep:-4}  # epochs a round: passes over the unlabelled images; about 1500 steps or more are good
batch_labeled=${batch_labeled:-1}  # labelled images a step
batch_pseudo=${batch_pseudo:-7}  # pseudo-labelled images a step
lr=${lr:-}  # empty: 0.001, from random weights 0.01
gamma1=${gamma1:-5}  # dynamic weight where the arms agree
gamma2=${gamma2:-5}  # and where they disagree and the teacher is surer
val=${val:-500}  # steps between validations
batch_labeling=${batch_labeling:-8}  # images a forward pass when labelling

# For comparison, supervised on all labelled images:
BASELINE=${BASELINE:-}  # 1: train it too, as arm b of round 0
ep_b=${ep_b:-$ep0}  # its epochs; as many steps as an arm takes in all rounds make a fair comparison
seed_b=${seed_b:-1}  # of every random draw of arm b

source "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/rounds.sh"

if [ ! -f "$dataset" ]; then
    fail "there is no spec '$dataset': give one as in $0 datasets/weeds/dataset.yaml" \
        "(python -m tools.new_dataset writes it)"
fi
if [ "$backbone" = small ]; then : "${weights:=none}"; fi
if [ "$weights" = none ]; then : "${lr0:=0.02}" "${lr:=0.01}"; fi
: "${lr0:=0.002}" "${lr:=0.001}"

first=$split second=$split
if [ "$halves" != 0 ]; then
    [[ $id =~ ^(0|[1-9][0-9]*)$ ]] || fail "id is '$id'; splits have the numbers 0, 1, 2, ..., or give halves=0"
    first=$split-l second=$split-r
    prepare() {
        call "$PYTHON" "${root}dms_sample.py" --dataset="$dataset" --splits "$split" --ids $((id + 1)) \
            ${DATA_ROOT:+--data-root="$DATA_ROOT"} ${LISTS_DIR:+--lists="$LISTS_DIR"}
    }
fi
start l r

if [ "$BASELINE" = 1 ]; then
    train_labeled "$(name 0 b)" b "$split" "$ep_b" "$seed_b" "$val0"
fi
round0_of_both l "$first" r "$second"
round=0
for ratio in $ratios; do
    round=$((round + 1))
    teach_each_other $round l r "$ratio"  # l labels and r learns from that, then the other way round
    end_round $round
done

test_arm $round l
test_arm $round r

print_results
module tools.summarize "$OUTPUT_DIR" --exp="$exp" ${DATA_ROOT:+--data-root="$DATA_ROOT"}
