#!/usr/bin/env bash
# DMT+PLE on PASCAL VOC 2012 with 1/20 of the labels: two arms with different pre-training, c (COCO) and i (ImageNet).
# For other splits: ./dmt_ple-voc-20-1.sh split=8 id=2 ep0=54
set -euo pipefail

dataset=${dataset:-voc}  # its spec: a built-in one's name, or the path of a YAML file
split=${split:-20}  # 1/20 of the images are labelled
id=${id:-1}  # which of the random splits
exp=${exp:-dmt_ple-voc-$split-$id}  # name of the experiment

coco_arms=${coco_arms:-c}  # arms from COCO weights; the other starts from ImageNet weights
coco_weights=${coco_weights-voc_coco_resnet101.pt}  # from prepare_coco.sh; empty: no arm has COCO weights
seed_c=${seed_c:-1}  # of every random draw of arm c
seed_i=${seed_i:-2}  # of every random draw of arm i
weight_decay=${weight_decay:-0.0005}  # of SGD, in round 0 and in the rounds

# Round 0, supervised:
ep0=${ep0:-134}  # epochs; keep the number of steps when the split changes
batch0=${batch0:-8}  # images a step
lr0=${lr0:-0.002}  # initial learning rate
val0=${val0:-220}  # steps between validations

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

start c i
round0_of_both c "$split" i "$split"
round=0
for ratio in $ratios; do
    round=$((round + 1))
    teach_each_other $round i c "$ratio"  # i labels and c learns from that, then the other way round
    end_round $round
done

print_results
