#!/usr/bin/env bash
# DMT+PLE on real photographs with 100 labels, small enough for a CPU: the images of VOC that show an animal, at half
# the resolution (7 classes), and a small encoder that is pre-trained on ImageNet. The arms l and r differ by what they
# see in round 0 (the two subsets that dms_sample.py makes) and by their seeds; arm b is the supervised baseline on all
# labels of the split.
#     scripts/dmt_ple-voc-animals.sh DATA_ROOT
# The folder of the data is only read: the split lists go to OUTPUT_DIR/lists. Gammas and learning rate of the rounds
# were chosen on split id 0 alone: so weak a network learns too little under the papers' gammas of 5.
set -euo pipefail
positional=DATA_ROOT

dataset=${dataset:-voc-animals}  # its spec: a built-in one's name, or the path of a YAML file
split=${split:-31}  # 1/31.31 of the images are labelled: 100; or 8: 391
id=${id:-0}  # which of the random splits
exp=${exp:-dmt_ple-voc-animals-$split-$id}  # name of the experiment

backbone=${backbone:-timm/tf_efficientnet_lite0}  # or resnet101, resnet50, small, another of timm
output_stride=${output_stride-16}  # of the encoder: 8 or 16; empty: its default
weights=${weights:-}  # a file with the encoder's weights; empty: timm's own, downloaded; none: random
coco_arms=${coco_arms:-}  # arms from COCO weights: none
coco_weights=${coco_weights-}  # their weights; empty: no arm has COCO weights
seed_b=${seed_b:-1}  # of every random draw of arm b
seed0_l=${seed0_l:-1}  # of arm l in round 0
seed0_r=${seed0_r:-2}  # of arm r in round 0
seed_l=${seed_l:-2}  # of arm l in the rounds
seed_r=${seed_r:-1}  # of every random draw of arm r
weight_decay=${weight_decay:-0.0005}  # of SGD, in round 0 and in the rounds

# Round 0 and the baseline, supervised:
ep0=${ep0:-48}  # epochs of l and r: 480 steps
ep_b=${ep_b:-204}  # epochs of the baseline b: 2652 steps; l and r take 480 in round 0 and 2165 in the rounds
batch0=${batch0:-8}  # images a step
lr0=${lr0:-0.002}  # initial learning rate
val0=${val0:-120}  # steps between validations

# Rounds of mutual training, one for each ratio:
ratios=${ratios:-0.2 0.4 0.6 0.8 1.0}  # share of each class's pixels that gets pseudo labels
beta=${beta-0.15}  # increment of PLE, from round 2 on; empty: no PLE, plain DMT
ep=${ep:-1}  # epochs a round: 433 steps
batch_labeled=${batch_labeled:-1}  # labelled images a step
batch_pseudo=${batch_pseudo:-7}  # pseudo-labelled images a step
lr=${lr:-0.002}  # initial learning rate of every round
gamma1=${gamma1:-3}  # dynamic weight where the arms agree
gamma2=${gamma2:-3}  # and where they disagree and the teacher is surer
val=${val:-217}  # steps between validations
batch_labeling=${batch_labeling:-8}  # images a forward pass when labelling

source "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/rounds.sh"
if [ "${BASH_SOURCE[0]}" != "$0" ]; then return; fi  # sourced for its numbers

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
