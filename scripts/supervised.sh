#!/usr/bin/env bash
# For scripts/reproduce.sh: supervised training on the whole split from COCO weights, with the numbers of LAUNCHER.
# Where c is an arm of the rounds, this is its round 0.
set -euo pipefail
source "$LAUNCHER"

ratios= coco_arms+=" c" seed_c=${seed_c:-$seed_whole}
if [ "$split" = 1 ]; then seed_c=$id; fi

start c
round0 c "$split"
report
print_results
