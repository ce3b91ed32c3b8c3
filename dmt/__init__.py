"""The method, one file per step of the papers: loss, thresholds, enhancement, labeling, training, evaluation."""
