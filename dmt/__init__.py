"""The method, one file per step of the papers: loss, thresholds, enhancement, labeling, training, evaluation."""

import os

# Threads that spin while they wait make a busy machine ten times slower; OpenMP reads this when torch loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # huge pages for large tensors: a step takes a tenth less on a CPU
