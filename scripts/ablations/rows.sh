#!/usr/bin/env bash
# Sourced by the launchers of this folder: the rows of the papers' ablation table, each a function that shows its rounds.
#
# OUTPUT_DIR/ROW is the run folder of a row and whole in itself. What rows have in common is computed once and linked:
# all start from the checkpoints of OUTPUT_DIR/baseline, and PLE's round 1 is DMT's.
source "$(dirname "${BASH_SOURCE[0]}")/../rounds.sh"
RUNS=$OUTPUT_DIR
EXTRA="--on-collapse=warn $EXTRA"  # a variant that collapses is a result

planned=  # rows that a dry run has printed, and ROW:ARM for single arms

# row NAME: what follows belongs to this row, its run folder and its lock.
row() {
    OUTPUT_DIR=$RUNS/$1
    label_options=() train_options=() beta= gamma1=$gamma gamma2=$gamma
    echo "# --- $1 ---"
    lock_run
}

# link ROW FILE [LAST]: a file or folder of another row, without copying its content where the disk can. LAST is the file
# in the folder that is written last: where it is linked already, so is the rest.
link() {
    local from=$RUNS/$1/$2 to=$OUTPUT_DIR/$2
    if [ -n "$DRY_RUN" ]; then call cp -al "$from" "$to"; return; fi
    if [ "$from${3:+/$3}" -ef "$to${3:+/$3}" ]; then return; fi
    mkdir -p "$(dirname "$to")"
    rm -rf "${to:?}" "$to.linking"
    printf 'cp -al %q %q\n' "$from" "$to"
    cp -al "$from" "$to.linking" 2> /dev/null || cp -a "$from" "$to.linking"
    if [ -n "${3:-}" ]; then rm -f "$to.linking/.lock"; fi  # every row has its own
    mv "$to.linking" "$to"
}

# has ROW ROUND ARM: is that stage of another row finished (or printed by this dry run)?
has() {
    local stage
    stage=$RUNS/$1/$(name "$2" "$3")
    if [ "$RUNS/$1" = "$OUTPUT_DIR" ]; then return 1; fi
    if [[ " $planned " == *" $1 "* || " $planned " == *" $1:$3 "* ]]; then return; fi
    [ -f "$stage.pt" ] && [ -f "$stage/result.json" ]
}

# share ROW ROUND ARM: the finished stage and its line in log.txt.
share() {
    local stage line
    stage=$(name "$2" "$3")
    link "$1" "$stage.pt"
    link "$1" "$stage" result.json
    if [ -n "$DRY_RUN" ]; then return; fi
    line=$(grep -F "$stage: " "$RUNS/$1/log.txt" || true)
    if ! grep -qxF "$line" "$OUTPUT_DIR/log.txt" 2> /dev/null; then echo "$line" >> "$OUTPUT_DIR/log.txt"; fi
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

# labels_of ROW ROUND ARM ...: the pseudo labels of another row, unless they were removed after they had served.
labels_of() {
    local arm folder
    for arm in "${@:3}"; do
        folder=pseudo/$(name "$2" "$arm")
        if has "$1" "$(($2 + 1))" "$arm" && [ ! -f "$RUNS/$1/$folder/pruned" ]; then
            link "$1" "$folder" manifest.json
        fi
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
        label $round l "$ratio"
        train $round r l
        label $round r "$ratio"  # with its checkpoint of the round before, as l did
        train $round l r
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
}

run_row() {
    row "$1"
    case $1 in
        baseline) for arm in $baseline_arms; do baseline_arm "$arm"; done ;;
        cbst) gamma1=0 gamma2=0; self_training ;;
        dst) self_training ;;
        dmt) mutual_training ;;
        naive) train_options=(--on-student-win=naive); mutual_training ;;
        flip) train_options=(--on-student-win=flip); mutual_training ;;
        online) online_training ;;
        ple) beta=$beta_ple; mutual_training ;;
        ple-no-conflict-reduction) beta=$beta_ple label_options=(--no-conflict-reduction); mutual_training ;;
        beta-*) beta=${1#beta-}; mutual_training ;;
        *) fail "there is no row '$1'; choose of baseline cbst dst dmt naive flip online ple ple-no-conflict-reduction beta" ;;
    esac
    planned+="${DRY_RUN:+ $1}"
    print_results
}

# run_rows ROW ...: "beta" stands for all values of betas but the one of the row ple.
run_rows() {
    local one value
    for one in "$@"; do
        if [ "$one" != beta ]; then run_row "$one"; continue; fi
        for value in $betas; do
            if [ "$value" != "$beta_ple" ]; then run_row "beta-$value"; fi
        done
    done
}

# estimate UNIT: the cost of a fresh start, from what a dry run prints.
estimate() {
    if [ -n "${ESTIMATED:-}" ]; then return; fi
    ESTIMATED=1 DRY_RUN=1 OUTPUT_DIR="$(mktemp -u)" bash "$0" \
        | awk -v images="$images" -v seconds="$SECONDS_PER_STEP" -v what="$1" -f "${root}scripts/estimate.awk"
}

# A folder holds the rows of one experiment: what one of them shares must be what the others would have computed.
check_numbers() {
    local numbers file=$RUNS/.numbers
    if [ -n "$DRY_RUN" ]; then return; fi
    numbers="$dataset $split $id $exp $EXTRA $MIXED_PRECISION $coco_arms $weight_decay | $ep0 $batch0 $lr0 $val0 |"
    numbers+=" $ratios | $ep $batch_labeled $batch_pseudo $lr $gamma $val $batch_labeling | $seed_c $seed_l $seed_r"
    mkdir -p "$RUNS" || fail "the folder $RUNS cannot be made; set OUTPUT_DIR to another one"
    if [ -f "$file" ] && [ "$(cat "$file")" != "$numbers" ]; then
        fail "$RUNS holds ablations with other numbers; remove it, or set OUTPUT_DIR to another folder"
    fi
    echo "$numbers" > "$file"
}
