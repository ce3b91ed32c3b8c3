# Reads what a launcher prints with DRY_RUN=1 and prints how many stages and training steps these are, and an estimate of
# hours: steps times SECONDS, where one step stands for its share of labelling and validation, too.
#     DRY_RUN=1 LAUNCHER | awk -v images=10582 -v seconds=0.38 -v what="GPU hours" -f scripts/estimate.awk
# images: size of the training set, of which a split D labels 1/D. images and seconds may differ by dataset, as in
# -v images="voc=10582 city=2975"; labeled="voc/train=1464" gives the labelled images of a split that are not 1/D.

function option(name, default_value,    i) {
    for (i = 1; i <= NF; i++) if (index($i, "--" name "=") == 1) return substr($i, length(name) + 4)
    return default_value
}

function ceiling(x) { return x == int(x) ? x : int(x) + 1 }

# The value of a name in "NAME=VALUE ...", or the one value for all names; "" where there is none.
function value_of(list, name,    parts, pair, i) {
    if (list !~ /=/) return list
    split(list, parts, " ")
    for (i in parts) {
        split(parts[i], pair, "=")
        if (pair[1] == name) return pair[2]
    }
    return ""
}

function labeled_of(divisor, all,    split_name, count) {
    split_name = divisor
    sub(/-[lr]$/, "", split_name)
    count = value_of(labeled, option("dataset") "/" split_name)
    if (count == "") {
        count = int(all / (divisor + 0 ? divisor : 1))
        if (count % 8 == 1 && divisor != 1) count++  # generate_splits.py
    }
    return count
}

function steps_of(    divisor, all, count) {
    divisor = option("train-set", 1)
    all = value_of(images, option("dataset"))
    count = labeled_of(divisor, all)
    if ($0 ~ / --state=2 /) {
        if (divisor ~ /-[lr]$/) count -= ceiling(count / 5)  # dms_sample.py
        return option("epochs") * ceiling(count / option("batch-size-labeled"))
    }
    return option("epochs") * ceiling((all - count) / option("batch-size-pseudo"))
}

/ --labeling / { labelings++ }
/ --epochs=/ {
    trainings++
    steps += steps_of()
    hours += steps_of() * value_of(seconds, option("dataset")) / 3600
}

END {
    printf "# %d trainings of %d steps in all and %d labellings: about %.1f %s, at %s s a step.\n",
        trainings, steps, labelings, hours, what, seconds
}
