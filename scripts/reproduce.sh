#!/usr/bin/env bash
# Every cell of the papers' tables: both datasets, all splits, three split ids; supervised, DMT and DMT+PLE.
#     scripts/reproduce.sh        scripts/reproduce.sh CELLS="voc-106 city-8" IDS="0 1" METHODS="supervised dmt"
# OUTPUT_DIR/CELL-ID/METHOD becomes a run folder; what methods of a cell have in common (round 0, and round 1 of DMT and
# DMT+PLE; on Cityscapes, where DMT+PLE has a recipe of its own, the round 0 of supervised and DMT) is computed once and
# linked. Interrupted, the same command goes on. Ends with the table beside the published numbers. With several GPUs:
# one such command a GPU, each with CELLS or IDS of its own.
#
# The cells voc-20, voc-8, voc-sbd, city-30 and city-8 have arms c and i, voc-106 and voc-50 have arms l and r (run
# dms_sample.py first). With all labels (voc-full, city-full) there is nothing to be learnt from other images:
# supervised only. voc-sbd has id 0 alone; its method "oracle" is voc-full of id 0. Numbers not named here are those of
# the launchers dmt_ple-*.sh and can be set in the same way, as in ep=1; VOC_ROOT and CITYSCAPES_ROOT say where the
# datasets are.
set -euo pipefail
exp=reproduce
passed_on="coco_arms coco_weights seed_c seed_i seed_l seed_r seed0_l seed0_r weight_decay batch0 lr0 val0 ratios ep
    batch_labeled batch_pseudo lr gamma1 gamma2 val batch_labeling"

CELLS=${CELLS:-voc-106 voc-50 voc-20 voc-8 voc-full voc-sbd city-30 city-8 city-full}  # in this order
IDS=${IDS:-0 1 2}  # random splits; the published numbers are means over these three
METHODS=${METHODS:-supervised dmt ple oracle}  # any of these

# Epochs of supervised training: about the same number of steps for all splits with the same kind of arms.
ep0_voc_106=${ep0_voc_106:-300}  # 3900 steps on the whole split
ep0_voc_50=${ep0_voc_50:-134}  # 3618 steps
ep0_voc_20=${ep0_voc_20:-134}  # 8978 steps
ep0_voc_8=${ep0_voc_8:-54}  # 8964 steps
ep0_voc_full=${ep0_voc_full:-30}  # 39690 steps
ep0_voc_sbd=${ep0_voc_sbd:-85}  # 15555 steps
ep0_city_30=${ep0_city_30:-615}  # 7995 steps
ep0_city_8=${ep0_city_8:-170}  # 7990 steps
ep0_city_full=${ep0_city_full:-22}  # 8184 steps
# On Cityscapes DMT+PLE has numbers of its own in round 0 and round 1, supervised and DMT have these:
ep0_ple_city_30=${ep0_ple_city_30:-1189}  # 15457 steps
ep0_ple_city_8=${ep0_ple_city_8:-329}  # 15463 steps
batch_labeled_dmt_city=${batch_labeled_dmt_city:-2}  # labelled images a step of DMT; DMT+PLE: the launcher's
batch_pseudo_dmt_city=${batch_pseudo_dmt_city:-6}  # pseudo-labelled images a step
beta_ple=${beta_ple:-0.15}  # increment of PLE, from round 2 on
seed_whole=${seed_whole:-1}  # of supervised training on the whole split where arm c is no arm of the rounds

source "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/rounds.sh"

all_cells="voc-106 voc-50 voc-20 voc-8 voc-full voc-sbd city-30 city-8 city-full"

# one_of WHAT "CHOICES" WORD ...: fail unless there are words and all are among the choices.
one_of() {
    local word
    if [ $# -lt 3 ]; then fail "no $1 is chosen; choose of $2"; fi
    for word in "${@:3}"; do
        if [[ " $2 " != *" $word "* ]]; then fail "there is no $1 '$word'; choose of $2"; fi
    done
}

# link RUN RUN STAGE ...: the stages of the first run that are finished become those of the second, unless it has them.
link() {
    local stage file
    if [ -n "$DRY_RUN" ]; then return; fi
    for stage in "${@:3}"; do
        if [ -e "$2/$stage" ] || [ ! -e "$1/$stage/result.json" -a ! -e "$1/$stage/manifest.json" ]; then continue; fi
        mkdir -p "$(dirname "$2/$stage")"
        for file in "$1/$stage"{.pt,}; do if [ -e "$file" ]; then cp -al "$file" "$(dirname "$2/$stage")"; fi; done
    done
}

# run_method CELL ID METHOD: into OUTPUT_DIR/CELL-ID/METHOD, by the cell's launcher with the numbers of the cell. What a
# method before it has in common with it is linked: the launcher finds it finished.
run_method() {
    local dataset=${1%-*} split=${1#*-} launcher epochs=ep0_${1//-/_} folder=$OUTPUT_DIR/$1-$2 numbers=()
    if [[ " ${runs[*]} " == *" $folder/$3 "* ]]; then return; fi  # voc-full of id 0 is the oracle, too
    runs+=("$folder/$3")
    echo "# --- $1-$2/$3 ---"
    case $1 in
        voc-106 | voc-50) launcher=dmt_ple-voc-106-1lr.sh ;;
        voc-sbd) launcher=dmt_ple-voc-sbd-0.sh split=train ;;
        voc-*) launcher=dmt_ple-voc-20-1.sh ;;
        city-*) launcher=dmt_ple-city-8-1.sh ;;
    esac
    case $1/$3 in
        voc-50/*) numbers+=(val0="${val0:-220}") ;;
        voc-full/*) split=1 numbers+=(val0="${val0:-500}") ;;
        city-full/*) split=1 ;;
        city-*/ple) epochs=ep0_ple_${1//-/_} ;;
        city-*/dmt) numbers+=(batch_labeled="$batch_labeled_dmt_city" batch_pseudo="$batch_pseudo_dmt_city") ;;
    esac
    numbers+=(dataset="$dataset" split="$split" id="$2" exp="$1-$2" ep0="${!epochs}" OUTPUT_DIR="$folder/$3"
        BASELINE="$folder/supervised")
    case $3 in
        supervised)
            numbers+=(BASELINE= LAUNCHER="${root:-./}$launcher" seed_whole="$seed_whole")
            launcher=scripts/supervised.sh ;;
        dmt) numbers+=(beta=) ;;
        ple) numbers+=(beta="$beta_ple") ;;
    esac
    if [ "$dataset/$3" != city/ple ]; then link "$folder/supervised" "$folder/$3" "$1-$2__p0--c"; fi
    if [ "$dataset/$3" = voc/ple ]; then
        link "$folder/dmt" "$folder/ple" "$1-$2__p0--"{c,i,l,r} "pseudo/$1-$2__p0--"{c,i,l,r} "$1-$2__p1--"{c,i,l,r}
    fi
    env "${numbers[@]}" bash "$root$launcher"
}

run_cell() {
    local method methods="supervised dmt ple"
    if [[ $1 == *-full ]]; then methods=supervised; fi
    if [ "$1" = voc-sbd ] && [ "$2" != 0 ]; then return; fi  # it has no random splits
    for method in $methods; do
        if [[ " $METHODS " == *" $method "* ]]; then run_method "$1" "$2" $method; fi
    done
    if [ "$1" = voc-sbd ] && [[ " $METHODS " == *" oracle "* ]]; then run_method voc-full 0 supervised; fi
}

one_of cell "$all_cells" $CELLS
one_of "split id" "0 1 2" $IDS
one_of method "supervised dmt ple oracle" $METHODS
if [[ " $CELLS" == *" voc"* && " $CELLS" == *" city"* && -n "$DATA_ROOT$LISTS_DIR" ]]; then
    fail "DATA_ROOT and LISTS_DIR are for one dataset; set VOC_ROOT and CITYSCAPES_ROOT, or choose cells of one"
fi
runs=()  # run folders that the table is made of
if [ -z "$DRY_RUN" ]; then DRY_RUN=plan bash "$0" | "$PYTHON" "${root}main.py" --plan ${REDO:+--redo}; fi
for cell in $CELLS; do
    for number in $IDS; do run_cell "$cell" "$number"; done
done
if [ ${#runs[@]} = 0 ]; then fail "nothing is left to run: these cells have none of the chosen methods and ids"; fi
module tools.tables "${runs[@]}"
