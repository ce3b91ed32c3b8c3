#!/usr/bin/env bash
# Every cell of the papers' tables: both datasets, all splits, three split ids; supervised, DMT and DMT+PLE.
#     scripts/reproduce.sh        CELLS="voc-106 city-8" IDS="0 1" METHODS="supervised dmt" scripts/reproduce.sh
# OUTPUT_DIR/CELL-ID/METHOD becomes a run folder; what methods of a cell have in common (round 0, and round 1 of DMT and
# DMT+PLE; on Cityscapes, where DMT+PLE has a recipe of its own, the round 0 of supervised and DMT) is computed once and
# linked. Interrupted, the same command goes on. Ends with the table beside the published
# numbers. With several GPUs: one such command a GPU, each with CELLS or IDS of its own.
#
# The cells voc-20, voc-8, voc-sbd, city-30 and city-8 have arms c and i, voc-106 and voc-50 have arms l and r (run
# dms_sample.py first). With all labels (voc-full, city-full) there is nothing to be learnt from other images: supervised
# only. voc-sbd has id 0 alone; its method "oracle" is voc-full of id 0. Numbers not named here are those of the launchers
# dmt_ple-*.sh and can be set in the same way, as in ep=1; VOC_ROOT and CITYSCAPES_ROOT say where the datasets are.
set -euo pipefail

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
# On Cityscapes DMT+PLE has epochs of its own in round 0, and DMT batches of its own in the rounds:
ep0_ple_city_30=${ep0_ple_city_30:-1189}  # 15457 steps
ep0_ple_city_8=${ep0_ple_city_8:-329}  # 15463 steps
batch_labeled_dmt_city=${batch_labeled_dmt_city:-2}  # labelled images a step of DMT, in every round
batch_pseudo_dmt_city=${batch_pseudo_dmt_city:-6}  # pseudo-labelled images a step
beta_ple=${beta_ple:-0.15}  # increment of PLE, from round 2 on
seed_whole=${seed_whole:-1}  # of supervised training on the whole split where arm c is no arm of the rounds

# For the estimate. The authors state 8 hours for a DMT run on one RTX 2080 Ti; that of dmt_ple-voc-20-1.sh has 75400
# steps. Cityscapes' crops have 1.27 times as many pixels.
SECONDS_PER_STEP=${SECONDS_PER_STEP:-voc=0.38 city=0.48}  # with the step's share of labelling and validation
images="voc=10582 city=2975"
labeled="voc/106=100 voc/train=1464 city/30=100"

exp=reproduce
source "$(dirname "${BASH_SOURCE[0]}")/rounds.sh"
source "${root}scripts/sharing.sh"
all_cells="voc-106 voc-50 voc-20 voc-8 voc-full voc-sbd city-30 city-8 city-full"
top=$OUTPUT_DIR
runs=()  # run folders that the table is made of

# one_of WHAT "CHOICES" WORD ...: fail unless there are words and all are among the choices.
one_of() {
    local word
    if [ $# -lt 3 ]; then fail "no $1 is chosen; choose of $2"; fi
    for word in "${@:3}"; do
        if [[ " $2 " != *" $word "* ]]; then fail "there is no $1 '$word'; choose of $2"; fi
    done
}

check_choices() {
    one_of cell "$all_cells" $CELLS
    one_of "split id" "0 1 2" $IDS
    one_of method "supervised dmt ple oracle" $METHODS
    if [[ " $CELLS" == *" voc"* && " $CELLS" == *" city"* && -n "$DATA_ROOT$LISTS_DIR" ]]; then
        fail "DATA_ROOT and LISTS_DIR are for one dataset; set VOC_ROOT and CITYSCAPES_ROOT, or choose cells of one"
    fi
}

chosen() { [[ " $METHODS " == *" $1 "* ]]; }

# cell NAME ID METHOD: the numbers of a cell. The rest is taken from the top of its launcher, which is started with these.
cell() {
    local epochs=ep0_${1//-/_}
    alike="supervised dmt ple"  # methods with the same recipe, as far as they go
    if [[ $1 == city-* && $3 = ple ]]; then
        epochs=ep0_ple_${1//-/_} alike=
    elif [[ $1 == city-* ]]; then
        alike="supervised dmt" batch_labeled=$batch_labeled_dmt_city batch_pseudo=$batch_pseudo_dmt_city
    fi
    dataset=${1%-*} split=${1#*-} id=$2 exp=$1-$2 ep0=${!epochs} arms="c i" val0=
    launcher=dmt_ple-$dataset-$(if [ "$dataset" = voc ]; then echo 20; else echo 8; fi)-1.sh
    case $1 in
        voc-106) launcher=dmt_ple-voc-106-1lr.sh arms="l r" ;;
        voc-50) launcher=dmt_ple-voc-106-1lr.sh arms="l r" val0=220 ;;
        voc-sbd) launcher=dmt_ple-voc-sbd-0.sh split=train ;;
        voc-full) split=1 arms= val0=500 ;;
        city-full) split=1 arms= ;;
    esac
    eval "$(sed '/^source /,$d' "$root$launcher")"
}

# Supervised training on the whole split from COCO weights. Where c is an arm of the rounds, it is its round 0.
supervised() {
    local row
    for row in $alike; do
        if [ "$arms" = "c i" ] && has $row 0 c; then share $row 0 c; return; fi
    done
    if [ -n "$coco_weights" ]; then coco_arms+=" c"; fi
    if [ "$arms" = "l r" ]; then seed_c=$seed_whole; fi
    if [ -z "$arms" ]; then seed_c=$id; fi
    lock_run
    check_options=(--state=2)  # no unlabelled images are needed
    check_run c
    round0 c "$split"
    print_results
    ratios='' report 0 c
}

# rounds_of ROW BETA: the launcher, after whatever another method of the cell has computed already.
rounds_of() {
    local row arm filter=(-e "") first=${arms% *} second=${arms#* }
    for arm in $arms; do
        for row in $alike; do
            if has "$row" 0 "$arm"; then share "$row" 0 "$arm"; filter+=(-e "/--exp-name=$(name 0 "$arm") /d"); break; fi
        done
    done
    for row in $alike; do
        if ! has "$row" 1 "$first" || ! has "$row" 1 "$second"; then continue; fi
        for arm in $arms; do
            share "$row" 1 "$arm"
            link "$row" "pseudo/$(name 0 "$arm")" manifest.json
            filter+=(-e "/--exp-name=$(name 1 "$arm") /d" -e "/--labeling .*--pseudo-dir=[^ ]*$(name 0 "$arm") /d")
        done
    done
    local words=(dataset="$dataset" split="$split" id="$id" exp="$exp" ep0="$ep0" val0="$val0" beta="$2"
        batch_labeled="$batch_labeled" batch_pseudo="$batch_pseudo" OUTPUT_DIR="$OUTPUT_DIR" BASELINE="$RUNS/supervised")
    echo "# ${words[*]} ${root:-./}$launcher"
    if [ -z "$DRY_RUN" ]; then env "${words[@]}" bash "$root$launcher"; return; fi
    env "${words[@]}" bash "$root$launcher" | sed "${filter[@]}"
}

# numbers_of CELL ID METHOD: everything that its results depend on, as a text.
numbers_of() {
    cell "$@"
    local more=
    if [ "$arms" = "l r" ]; then more=" $seed0_l $seed0_r"; fi
    if [ "$previous_statistics" != running ]; then more+=" $previous_statistics"; fi
    echo "$EXTRA $MIXED_PRECISION $coco_arms $coco_weights $weight_decay | $ep0 $batch0 $lr0 $val0 |
            $seed_whole ${seed_c:-} ${seed_i:-} ${seed_l:-} ${seed_r:-} | $ratios | $ep $batch_labeled $batch_pseudo $lr |
            $gamma1 $gamma2 $val $batch_labeling | $beta_ple$more"
}

# run_method CELL ID METHOD: into a run folder of its own.
run_method() {
    local numbers
    RUNS=$top/$1-$2 OUTPUT_DIR=$top/$1-$2
    echo "# --- $1-$2/$3 ---"
    runs+=("$RUNS/$3")
    lock_run
    numbers=$(numbers_of "$1" "$2" dmt)
    if [[ $1 == city-* && $1 != *-full ]]; then numbers+=" $(numbers_of "$1" "$2" ple)"; fi
    keep_numbers runs "$numbers"
    (
        cell "$@"
        OUTPUT_DIR=$RUNS/$3
        case $3 in
            supervised) supervised ;;
            dmt) rounds_of dmt "" ;;
            ple) rounds_of ple "$beta_ple" ;;
        esac
    )
    planned+=${DRY_RUN:+ $3$(if [ "$3" = supervised ]; then echo :c; fi)}
}

run_cell() {
    local method methods="supervised dmt ple"
    planned=
    if [[ $1 == *-full ]]; then methods=supervised; fi
    if [ "$1" = voc-sbd ] && [ "$2" != 0 ]; then return; fi  # it has no random splits
    for method in $methods; do
        if chosen $method; then run_method "$1" "$2" $method; fi
    done
    if [ "$1" = voc-sbd ] && chosen oracle && ! { [[ " $CELLS " == *" voc-full "* ]] && chosen supervised; }; then
        run_method voc-full 0 supervised
    fi
}

check_choices
estimate "GPU hours"
for cell in $CELLS; do
    for id in $IDS; do run_cell "$cell" "$id"; done
done
if [ ${#runs[@]} = 0 ]; then fail "nothing is left to run: these cells have none of the chosen methods and ids"; fi
echo
call env PYTHONPATH="${root:-.}" "$PYTHON" -m tools.tables "${runs[@]}"
