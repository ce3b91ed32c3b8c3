#!/usr/bin/env bash
# DMT+PLE on CamVid (VOC layout, 11 classes, 360 x 480) with 1/8 of the labels, from random weights: no downloads, and
# small enough for a CPU. The arms l and r differ by what they see in round 0 (the two subsets that dms_sample.py makes)
# and by their seeds; arm b is the supervised baseline on all labels of the split.
#     scripts/dmt_ple-camvid.sh DATA_ROOT
# The folder of the data is only read: the split lists go to OUTPUT_DIR/lists.
set -euo pipefail
positional=DATA_ROOT
KEEP=${KEEP:-1}  # 0: remove the predictions that have served; the table at the end shows less of these rounds then

dataset=${dataset:-camvid}  # its spec: a built-in one's name, or the path of a YAML file
split=${split:-8}  # 1/8 of the images are labelled
id=${id:-0}  # which of the random splits
exp=${exp:-dmt_ple-camvid-$split-$id}  # name of the experiment

backbone=${backbone:-small}  # or resnet101, resnet50, timm/NAME
weights=${weights:-none}  # none: random; or a file with torchvision's weights of the backbone
coco_arms=${coco_arms:-}  # arms from COCO weights: none
coco_weights=${coco_weights-}  # their weights; empty: no arm has COCO weights
seed_b=${seed_b:-1}  # of every random draw of arm b
seed_l=${seed_l:-1}  # of every random draw of arm l
seed_r=${seed_r:-2}  # of every random draw of arm r
crop=${crop:-161 225}  # height and width of the training crops
weight_decay=${weight_decay:-0.0005}  # of SGD, in round 0 and in the rounds

# Round 0 and the baseline, supervised:
ep0=${ep0:-100}  # epochs of l and r
ep_b=${ep_b:-240}  # epochs of the baseline b: 1440 steps; l and r take 500 in round 0 and 920 in the rounds
batch0=${batch0:-8}  # images a step
lr0=${lr0:-0.02}  # initial learning rate
val0=${val0:-100}  # steps between validations

# Rounds of mutual training, one for each ratio:
ratios=${ratios:-0.2 0.4 0.6 0.8 1.0}  # share of each class's pixels that gets pseudo labels
beta=${beta-0.15}  # increment of PLE, from round 2 on; empty: no PLE, plain DMT
ep=${ep:-4}  # epochs a round
batch_labeled=${batch_labeled:-1}  # labelled images a step
batch_pseudo=${batch_pseudo:-7}  # pseudo-labelled images a step
lr=${lr:-0.01}  # initial learning rate of every round
gamma1=${gamma1:-5}  # dynamic weight where the arms agree
gamma2=${gamma2:-5}  # and where they disagree and the teacher is surer
val=${val:-92}  # steps between validations
batch_labeling=${batch_labeling:-8}  # images a forward pass when labelling

source "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/rounds.sh"
if [ "${BASH_SOURCE[0]}" != "$0" ]; then return; fi  # sourced for its numbers

all_options=(--crop-size $crop)
own_lists
start l r
train_labeled "$(name 0 b)" b "$split" "$ep_b" "$seed_b" "$val0"
round0_of_both l "$split-l" r "$split-r"
round=0
for ratio in $ratios; do
    round=$((round + 1))
    teach_each_other $round l r "$ratio"  # l labels and r learns from that, then the other way round
    end_round $round
done

test_arm 0 b
test_arm $round l
test_arm $round r

print_results
module tools.summarize "$OUTPUT_DIR" --exp="$exp" ${DATA_ROOT:+--data-root="$DATA_ROOT"}
