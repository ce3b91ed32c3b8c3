"""This software beside a plain rendering of the released procedure: ``python -m benchmarks.NAME``, one a topic."""
