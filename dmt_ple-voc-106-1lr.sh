#!/usr/bin/env bash
# DMT+PLE on PASCAL VOC 2012 with 100 labels: two arms from COCO weights, l and r, which differ by what they see in
# round 0: the two subsets of the labelled images that dms_sample.py makes. The rounds train on all labelled images.
set -euo pipefail

dataset=${dataset:-voc}  # its spec: a built-in one's name, or the path of a YAML file
split=${split:-106}  # 1/105.82 of the images are labelled: 100
id=${id:-1}  # which of the random splits
exp=${exp:-dmt_ple-voc-$split-${id}lr}  # name of the experiment

coco_arms=${coco_arms:-l r}  # arms from COCO weights: both
coco_weights=${coco_weights-voc_coco_resnet101.pt}  # from prepare_coco.sh; empty: no arm has COCO weights
seed0_l=${seed0_l:-1}  # of arm l in round 0
seed0_r=${seed0_r:-2}  # of arm r in round 0
seed_l=${seed_l:-2}  # of arm l in the rounds
seed_r=${seed_r:-1}  # of every random draw of arm r
weight_decay=${weight_decay:-0.0005}  # of SGD, in round 0 and in the rounds

# Round 0, supervised:
ep0=${ep0:-300}  # epochs
batch0=${batch0:-8}  # images a step
lr0=${lr0:-0.002}  # initial learning rate
val0=${val0:-100}  # steps between validations

# Rounds of mutual training, one for each ratio:
ratios=${ratios:-0.2 0.4 0.6 0.8 1.0}  # share of each class's pixels that gets pseudo labels
beta=${beta-0.15}  # increment of PLE, from round 2 on; empty: no PLE, plain DMT
ep=${ep:-4}  # epochs a round
batch_labeled=${batch_labeled:-1}  # labelled images a step
batch_pseudo=${batch_pseudo:-7}  # pseudo-labelled images a step
lr=${lr:-0.001}  # initial learning rate of every round
gamma1=${gamma1:-5}  # dynamic weight where the arms agree
gamma2=${gamma2:-5}  # and where they disagree and the teacher is surer
val=${val:-500}  # steps between validations
batch_labeling=${batch_labeling:-8}  # images a forward pass when labelling

source "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/scripts/rounds.sh"
if [ "${BASH_SOURCE[0]}" != "$0" ]; then return; fi  # sourced for its numbers

start l r
round0_of_both l "$split-l" r "$split-r"
round=0
for ratio in $ratios; do
    round=$((round + 1))
    teach_each_other $round l r "$ratio"  # l labels and r learns from that, then the other way round
    end_round $round
done

print_results
