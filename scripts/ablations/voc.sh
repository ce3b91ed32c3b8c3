#!/usr/bin/env bash
# The papers' ablations: PASCAL VOC 2012 with 1/50 of the labels, split id 2, all arms from COCO weights.
#     scripts/ablations/voc.sh        scripts/ablations/voc.sh ROWS="baseline dmt ple"
# OUTPUT_DIR/ROW becomes the run folder of a row. With several GPUs: first ROWS="baseline dmt", then one launcher a GPU,
# each with a part of the other rows. Numbers that are not named here are those of dmt_ple-voc-106-1lr.sh and can be set
# in the same way, as in ep=1.
set -euo pipefail

dataset=${dataset:-voc}  # its spec: a built-in one's name, or the path of a YAML file
split=${split:-50}  # 1/50 of the images are labelled
id=${id:-2}  # which of the random splits
exp=${exp:-ablations-$dataset-$split-$id}  # name of the experiment
ROWS=${ROWS:-baseline cbst dst dmt naive flip online ple ple-no-conflict-reduction beta}  # rows to run, in this order
baseline_arms=${baseline_arms:-c l r}  # of the row baseline: c on the whole split, l and r on its halves
coco_arms=${coco_arms-c f l r}  # arms from COCO weights
seed_c=${seed_c:-1}  # of every random draw of arm c
seed_f=${seed_f:-$id}  # of every random draw of arm f, which learns from all labels in the row full
ep0=${ep0:-134}  # epochs of c, l and r in round 0
ep_full=${ep_full:-30}  # epochs of f, those of the papers' oracle
val0=${val0:-220}  # steps between validations in round 0
gamma=${gamma:-5}  # both exponents of the dynamic weight; cbst has 0
beta_ple=${beta_ple:-0.15}  # increment of PLE, from round 2 on
betas=${betas:-0 0.05 0.1 0.15 0.2 0.3 0.5}  # increments of the rows beta-VALUE
online=${online:-0.9}  # the row online learns its own decisions above this confidence
: "${gamma1:=$gamma}" "${gamma2:=$gamma}" "${beta=$beta_ple}" "${coco_arms:=none}"  # not the defaults of the launcher
source "$(dirname "${BASH_SOURCE[0]}")/../../dmt_ple-voc-106-1lr.sh"  # its numbers, for what is not named above

beta_ple=$beta
source "$(dirname "${BASH_SOURCE[0]}")/rows.sh"
RUNS=$OUTPUT_DIR
start $baseline_arms
run_rows "${rows[@]}"
