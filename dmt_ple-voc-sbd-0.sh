#!/usr/bin/env bash
# DMT+PLE beyond human labels: VOC's own 1464 labels, and the images of SBD without theirs. Two arms with different
# pre-training, c (COCO) and i (ImageNet).
set -euo pipefail

dataset=${dataset:-voc}  # its spec: a built-in one's name, or the path of a YAML file
split=${split:-train}  # labelled: VOC's own 1464 images, unlabelled: the 9118 of SBD
id=${id:-0}  # which of the random splits
exp=${exp:-dmt_ple-voc-sbd-$id}  # name of the experiment

coco_arms=${coco_arms:-c}  # arms from COCO weights; the other starts from ImageNet weights
coco_weights=${coco_weights-voc_coco_resnet101.pt}  # from prepare_coco.sh; empty: no arm has COCO weights
seed_c=${seed_c:-1}  # of every random draw of arm c
seed_i=${seed_i:-2}  # of every random draw of arm i
weight_decay=${weight_decay:-0.0005}  # of SGD, in round 0 and in the rounds

# Round 0, supervised:
ep0=${ep0:-85}  # epochs
batch0=${batch0:-8}  # images a step
lr0=${lr0:-0.002}  # initial learning rate
val0=${val0:-350}  # steps between validations

# Rounds of mutual training, one for each ratio:
ratios=${ratios:-0.2 0.4 0.6 0.8 1.0}  # share of each class's pixels that gets pseudo labels
beta=${beta-0.15}  # increment of PLE, from round 2 on; empty: no PLE, plain DMT
ep=${ep:-5}  # epochs a round
batch_labeled=${batch_labeled:-1}  # labelled images a step
batch_pseudo=${batch_pseudo:-7}  # pseudo-labelled images a step
lr=${lr:-0.001}  # initial learning rate of every round
gamma1=${gamma1:-5}  # dynamic weight where the arms agree
gamma2=${gamma2:-5}  # and where they disagree and the teacher is surer
val=${val:-500}  # steps between validations
batch_labeling=${batch_labeling:-8}  # images a forward pass when labelling

# The oracle, supervised on all 10582 images:
ORACLE=${ORACLE:-}  # 1: train it too, after the rounds
ep_oracle=${ep_oracle:-30}  # its epochs
seed_oracle=${seed_oracle:-$id}  # its seed
val_oracle=${val_oracle:-500}  # its steps between validations

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

if [ -n "$ORACLE" ] && [ "$ORACLE" != 0 ]; then
    train_labeled "${exp}__oracle" c 1 "$ep_oracle" "$seed_oracle" "$val_oracle"
    report
fi

print_results
