#!/usr/bin/env bash
# Sourced by the launchers of this folder: the rows of the papers' ablation table, each a function that shows its rounds.
#
# OUTPUT_DIR/ROW is the run folder of a row and whole in itself. What rows have in common is computed once and linked:
# all start from the checkpoints of OUTPUT_DIR/baseline, and PLE's round 1 is DMT's.
source "$(dirname "${BASH_SOURCE[0]}")/../rounds.sh"
source "${root}scripts/sharing.sh"
EXTRA="--on-collapse=warn $EXTRA"  # a variant that collapses is a result

# row NAME: what follows belongs to this row, its run folder and its lock.
row() {
    OUTPUT_DIR=$RUNS/$1 BASELINE=
    if [ "$1" != baseline ]; then BASELINE=$RUNS/baseline; fi
    label_options=() train_options=() beta= gamma1=$gamma gamma2=$gamma
    echo "# --- $1 ---"
    lock_run
}

# from_baseline ARM ...: round 0 of the arms, which the row baseline has trained or trains now.
from_baseline() {
    local arm
    for arm in "$@"; do
        if ! has baseline 0 "$arm"; then
            (OUTPUT_DIR=$RUNS/baseline; lock_run; baseline_arm "$arm")
            planned+="${DRY_RUN:+ baseline:$arm}"
        fi
        share baseline 0 "$arm"
    done
}

baseline_arm() {
    case $1 in
        b) train_labeled "$(name 0 b)" b "$split" "$ep_b" "$seed_b" "$val0" ;;
        c) round0 c "$split" ;;
        *) round0 "$1" "$split-$1" ;;
    esac
}

# One model on its own pseudo labels, without PLE.
self_training() {
    local round=0 ratio
    from_baseline c
    for ratio in $ratios; do
        round=$((round + 1))
        if [ $round = 1 ]; then labels_of cbst 0 c; fi
        label $round c "$ratio"
        train $round c c
        report $round c
        tidy $round c
    done
}

# Two models on each other's.
mutual_training() {
    local round=0 ratio
    from_baseline l r
    for ratio in $ratios; do
        round=$((round + 1))
        if [ $round = 1 ]; then
            labels_of dmt 0 l r
            if [ -n "$beta" ] && has dmt 1 l && has dmt 1 r; then
                share dmt 1 r
                share dmt 1 l
                continue
            fi
        fi
        teach_each_other $round l r "$ratio"
        report $round l r
        tidy $round l r
    done
}

# One model on labels that it makes on the fly, for as many steps as the rounds of the others have.
online_training() {
    local options=(--exp-name="$(name 1 c)" --state=1 --train-set="$split" --sets-id="$id")
    from_baseline c
    if is_coco c; then options+=(--coco); fi
    stage "${options[@]}" --continue-from="$(checkpoint 0 c)" --online="$online" \
        --epochs=$((ep * $(wc -w <<< "$ratios"))) --batch-size-labeled="$(of_round "$batch_labeled" 1)" \
        --batch-size-pseudo="$(of_round "$batch_pseudo" 1)" --lr="$lr" --weight-decay="$weight_decay" \
        --seed="$seed_c" --val-num-steps="$val"
    ratios=none report 1 c
}

run_row() {
    row "$1"
    case $1 in
        baseline)
            for arm in $baseline_arms; do baseline_arm "$arm"; done
            ratios='' report 0 $baseline_arms
            ;;
        full)
            train_labeled "$(name 0 f)" f 1 "$ep_full" "$seed_f" "$val0"
            ratios='' report 0 f
            ;;
        cbst) gamma1=0 gamma2=0; self_training ;;
        dst) self_training ;;
        dmt) mutual_training ;;
        naive) train_options=(--on-student-win=naive); mutual_training ;;
        flip) train_options=(--on-student-win=flip); mutual_training ;;
        online) online_training ;;
        ple) beta=$beta_ple; mutual_training ;;
        ple-no-conflict-reduction) beta=$beta_ple label_options=(--no-conflict-reduction); mutual_training ;;
        ple-batch-statistics) beta=$beta_ple label_options=(--previous-statistics=batch); mutual_training ;;
        beta-*) beta=${1#beta-}; mutual_training ;;
        *) fail "there is no row '$1'; choose of baseline full cbst dst dmt naive flip online ple ple-no-conflict-reduction" \
            "ple-batch-statistics beta" ;;
    esac
    planned+="${DRY_RUN:+ $1}"
    print_results
}

# all_rows ROW ...: "beta" stands for all values of betas but the one of the row ple.
all_rows() {
    local one value
    for one in "$@"; do
        if [ "$one" != beta ]; then echo "$one"; continue; fi
        for value in $betas; do
            if [ "$value" != "$beta_ple" ]; then echo "beta-$value"; fi
        done
    done
}

run_rows() {
    local one
    for one in $(all_rows "$@"); do run_row "$one"; done
}

# run_ids PREFIX ROWS ...: this launcher once for every one of IDS, into RUNS/PREFIX-ID: first with the first ROWS for all
# of them, then with the next. Then the table of all.
run_ids() {
    local ids id rows one words=(env PYTHONPATH="${root:-.}" "$PYTHON" -m tools.tables)
    read -ra ids <<< "$IDS"
    for id in "${ids[@]}"; do
        [[ $id == [012] ]] || fail "a split id is '$id'; there are 0, 1 and 2, as in IDS='0 1' $0"
    done
    for rows in "${@:2}"; do
        if [ -z "$rows" ]; then continue; fi
        ROWS=$rows one_by_one ID "$1" "${ids[@]}"
        export planned+="${DRY_RUN:+ $rows}"  # known to those that follow
    done
    for id in "${ids[@]}"; do
        for one in $(all_rows ${*:2}); do words+=("$RUNS/$1-$id/$one"); done
    done
    if [[ " ${*:2} " == *" beta"* ]]; then words+=(--by beta); fi
    call "${words[@]}"
}

# The numbers that all rows of the folder have in common.
check_numbers() {
    local numbers
    numbers="$dataset $split $id $exp $EXTRA $MIXED_PRECISION $coco_arms $weight_decay | $ep0 $batch0 $lr0 $val0 |"
    numbers+=" $ratios | $ep $batch_labeled $batch_pseudo $lr $gamma $val $batch_labeling | $seed_c $seed_l $seed_r${seed0_l+ $seed0_l $seed0_r}"
    if [ "$previous_statistics" != running ]; then numbers+=" | $previous_statistics"; fi
    numbers+="${first_options[*]:+ | ${first_options[*]}}"
    keep_numbers ablations "$numbers"
}
