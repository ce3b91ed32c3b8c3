"""A few hundred damaged inputs for every reader; ``python -m benchmarks.fuzz`` tries more."""


def test_readers_refuse_or_accept(tmp_path):
    from benchmarks.fuzz import fuzz
    figures, failures = fuzz(seconds=1, folder=tmp_path)
    assert failures == []
    assert len(figures) == 16 and all(figure["tried"] >= 100 for figure in figures.values())
    assert all(figure["refused"] > 0 for figure in figures.values())
