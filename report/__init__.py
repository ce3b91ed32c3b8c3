"""What a run has come to: the run folder read, its pixels looked at, figures, page and tables."""
