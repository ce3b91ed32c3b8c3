"""A few hundred damaged inputs for every reader; ``python -m benchmarks.fuzz`` tries more."""

from benchmarks.fuzz import fuzz


def test_readers_refuse_or_accept(tmp_path):
    figures, failures = fuzz(seconds=5, folder=tmp_path)
    assert failures == []
    assert len(figures) == 15 and all(figure["tried"] >= 100 and figure["refused"] for figure in figures.values())
