# Reads what a launcher prints with DRY_RUN=1 and prints how many stages and training steps these are, and an estimate of
# hours: steps times SECONDS, where one step stands for its share of labelling and validation, too.
#     DRY_RUN=1 LAUNCHER | awk -v images=10582 -v seconds=0.38 -v what="GPU hours" -f scripts/estimate.awk
# images: size of the training set, of which a split D labels 1/D.

function option(name, default_value,    i) {
    for (i = 1; i <= NF; i++) if (index($i, "--" name "=") == 1) return substr($i, length(name) + 4)
    return default_value
}

function ceiling(x) { return x == int(x) ? x : int(x) + 1 }

function steps_of(    divisor, labeled) {
    divisor = option("train-set", 1)
    labeled = int(images / (divisor + 0 ? divisor : 1))
    if (labeled % 8 == 1 && divisor != 1) labeled++  # generate_splits.py
    if ($0 ~ / --state=2 /) {
        if (divisor ~ /-[lr]$/) labeled -= ceiling(labeled / 5)  # dms_sample.py
        return option("epochs") * ceiling(labeled / option("batch-size-labeled"))
    }
    return option("epochs") * ceiling((images - labeled) / option("batch-size-pseudo"))
}

/ --labeling / { labelings++ }
/ --epochs=/ { trainings++; steps += steps_of() }

END {
    printf "# %d trainings of %d steps in all and %d labellings: about %.1f %s, at %s s a step.\n",
        trainings, steps, labelings, steps * seconds / 3600, what, seconds
}
