#!/usr/bin/env bash
# Sourced by the launchers of this folder after their numbers: the rows of the papers' ablation table, each a function
# that shows its rounds.
#
# RUNS/ROW is the run folder of a row and whole in itself. What rows have in common is computed once and linked: all
# start from the checkpoints of RUNS/baseline, and PLE's round 1 is DMT's. Several launchers may work on rows of their
# own.
several_runs=1
all_options+=(--on-collapse=warn)  # a variant that collapses is a result
rows=()  # those of ROWS, where "beta" stands for all values of betas but the one of the row ple
for row in $ROWS; do
    if [ "$row" != beta ]; then rows+=("$row"); continue; fi
    for value in $betas; do if [ "$value" != "$beta_ple" ]; then rows+=("beta-$value"); fi; done
done

# share ROW STAGE ...: finished stages of another row as this one's, without copying their content where the disk can.
share() {
    local stage line
    for stage in "${@:2}"; do
        call rm -rf "$OUTPUT_DIR/$stage.pt" "${OUTPUT_DIR:?}/$stage"
        call cp -al "$RUNS/$1/$stage.pt" "$RUNS/$1/$stage" "$OUTPUT_DIR"
        if [ -n "$DRY_RUN" ]; then continue; fi
        line=$(grep "^$stage: " "$RUNS/$1/log.txt")
        if ! grep -qxFs "$line" "$OUTPUT_DIR/log.txt"; then echo "$line" >> "$OUTPUT_DIR/log.txt"; fi
    done
}

# in_row ROW WORD ...: run the words in the folder of that row, when no other launcher works there.
in_row() {
    (OUTPUT_DIR=$RUNS/$1 BASELINE=$RUNS/baseline; lock_run; "${@:2}")
}

baseline_arm() {
    case $1 in
        b) train_labeled "$(name 0 b)" b "$split" "$ep_b" "$seed_b" "$val0" ;;
        c) round0 c "$split" ;;
        *) round0 "$1" "$split-$1" ;;
    esac
}

# from_baseline ARM ...: round 0 of the arms, which the row baseline has.
from_baseline() {
    local arm
    for arm in "$@"; do
        ratios= arms=$baseline_arms in_row baseline baseline_arm "$arm"
        share baseline "$(name 0 "$arm")"
    done
}

# rounds_of ARM ...: one model on its own pseudo labels, or two on each other's.
rounds_of() {
    local round=0 ratio arms=$*
    from_baseline "$@"
    for ratio in $ratios; do
        round=$((round + 1))
        if [ $# = 1 ]; then
            half $round "$1" "$1" "$ratio"
        elif [ $round = 1 ] && [ -n "$beta" ]; then
            (beta= label_options=(); in_row dmt first_round "$ratio")
            share dmt "$(name 1 r)" "$(name 1 l)"
            continue
        else
            teach_each_other $round l r "$ratio"
        fi
        end_round $round
    done
}

first_round() {
    from_baseline l r
    teach_each_other 1 l r "$1"
}

# One model on labels that it makes on the fly, for as many steps as the rounds of the others have.
online_training() {
    local arms=c
    from_baseline c
    stage --exp-name="$(name 1 c)" --state=1 --train-set="$split" --sets-id="$id" $(coco c) \
        --continue-from="$(checkpoint 0 c)" --online="$online" --epochs=$((ep * $(rounds))) \
        --batch-size-labeled="$(of_round "$batch_labeled" 1)" --batch-size-pseudo="$(of_round "$batch_pseudo" 1)" \
        --lr="$lr" --weight-decay="$weight_decay" --seed="$seed_c" --val-num-steps="$val"
    report
}

# run_row ROW
run_row() {
    local beta= gamma1=$gamma1 gamma2=$gamma2 label_options=() train_options=() arms="l r"
    case $1 in
        baseline) local ratios=; arms=$baseline_arms; for arm in $arms; do baseline_arm "$arm"; done; report ;;
        full) local ratios=; arms=f; train_labeled "$(name 0 f)" f 1 "$ep_full" "$seed_f" "$val0"; report ;;
        cbst) gamma1=0 gamma2=0; rounds_of c ;;
        dst) rounds_of c ;;
        dmt) rounds_of l r ;;
        naive | flip) train_options=(--on-student-win="$1"); rounds_of l r ;;
        online) online_training ;;
        ple) beta=$beta_ple; rounds_of l r ;;
        ple-no-conflict-reduction) beta=$beta_ple label_options=(--no-conflict-reduction); rounds_of l r ;;
        ple-batch-statistics) beta=$beta_ple; local previous_statistics=batch; rounds_of l r ;;
        beta-*) beta=${1#beta-}; rounds_of l r ;;
        *) fail "there is no row '$1'; choose of baseline full cbst dst dmt naive flip online ple" \
            "ple-no-conflict-reduction ple-batch-statistics beta" ;;
    esac
    print_results
}

run_rows() {
    local row
    for row in "$@"; do
        echo "# --- ${RUNS##*/}/$row ---"
        in_row "$row" run_row "$row"
    done
}

# run_all PREFIX VALUE ...: all rows for every value, JOBS values at a time; the main rows of all of them first. RUNS is
# OUTPUT_DIR/PREFIX-VALUE. Then the table of everything.
run_all() {
    local wave value row first= later= runs=()
    [[ $JOBS =~ ^[1-9][0-9]*$ ]] || fail "JOBS is '$JOBS'; it must be a positive whole number"
    ARMS_PARALLEL=$([ "$JOBS" = 1 ] || echo 1)  # here: the values side by side
    for row in "${rows[@]}"; do
        case $row in baseline | full | dmt | ple) first+=" $row" ;; *) later+=" $row" ;; esac
    done
    for wave in "$first" "$later"; do
        for value in ${wave:+"${@:2}"}; do
            RUNS=$OUTPUT_DIR/$1-$value
            begin "$1-$value" of_value "$value" $wave
            if [ ${#running[@]} = "$JOBS" ]; then finish "${!running[@]}"; fi
        done
        finish "${!running[@]}"
    done
    for value in "${@:2}"; do runs+=("${rows[@]/#/$OUTPUT_DIR/$1-$value/}"); done
    module tools.tables "${runs[@]}" --by beta  # values of betas are rows of their own
}

# of_value VALUE ROW ...: in one shell, which prints everything to the same place.
of_value() {
    ARMS_PARALLEL=
    exec 3>&1
    numbers_of "$1"
    run_rows "${@:2}"
}

# numbers_of VALUE: what belongs to a value; a launcher may have more.
numbers_of() { id=$1; }

# run_ids PREFIX: all rows for every split id of IDS.
run_ids() {
    local number
    for number in $IDS; do
        [[ $number == [012] ]] || fail "a split id is '$number'; there are 0, 1 and 2, as in $0 IDS='0 1'"
    done
    own_lists
    start $baseline_arms
    run_all "$1" $IDS
}
