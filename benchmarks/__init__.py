"""This software beside a plain rendering of the released procedure: one script a topic, ``python -m benchmarks.NAME``."""
