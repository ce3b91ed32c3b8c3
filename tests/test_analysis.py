"""What PLE changed, what was forgotten, where the arms agree: against counts made by hand."""

import numpy as np

from report import analysis

IGNORED = 255
#                  kept  mended spoilt dropped new+ new-     removed  wrong  ignored  unknown
TRUTH = np.array([[0,    0,     1,     1,      2,   2,       0,       1,     2,       IGNORED]])
BEFORE = np.array([[0,   1,     1,     1,      IGNORED, IGNORED, 2,   0,     IGNORED, 1]])
AFTER = np.array([[0,    0,     2,     IGNORED, 2,  1,       IGNORED, 2,     IGNORED, 0]])


def test_every_outcome_once():
    counts = analysis.changes(BEFORE, AFTER, TRUTH, 3)
    assert counts.shape == (3, 3, 3) and counts.sum() == 9  # the pixel of unknown truth is left out
    assert analysis.outcomes(counts) == {name: 1 for name in analysis.OUTCOMES}
    assert counts.sum(axis=(1, 2)).tolist() == [3, 3, 3]
    assert analysis.outcomes(counts[1]) == {**dict.fromkeys(analysis.OUTCOMES, 0), "spoilt": 1, "dropped": 1,
                                            "still wrong": 1}


def test_what_labels_are_worth():
    assert analysis.judged(BEFORE, TRUTH, 3).tolist() == [[2, 4, 1], [2, 3, 1], [1, 2, 0]]


def test_forgetting_is_best_earlier_minus_now():
    nan = np.nan
    iou = [[0.5, 0.2, nan], [0.7, 0.1, nan], [0.4, 0.3, 0.6], [0.6, nan, 0.5]]
    expected = [[nan, nan, nan], [-0.2, 0.1, nan], [0.3, -0.1, nan], [0.1, nan, 0.1]]
    np.testing.assert_allclose(analysis.forgetting(iou), expected, atol=1e-12)


def test_forgotten_pixels():
    truth = np.array([0, 0, 0, 0, 1, 1, IGNORED])
    old, new = np.array([0, 0, 0, 1, 1, 0, 0]), np.array([0, 0, 1, 0, 1, 0, 1])
    counts = analysis.changes(old, new, truth, 3)
    assert analysis.forgotten(counts)[:2].tolist() == [1 / 3, 0] and np.isnan(analysis.forgotten(counts)[2])
    assert analysis.forgotten(counts.sum(axis=0)) == 1 / 4


def test_counts_add_up_over_images():
    whole = analysis.changes(BEFORE, AFTER, TRUTH, 3)
    parts = [analysis.changes(BEFORE[:, part], AFTER[:, part], TRUTH[:, part], 3) for part in (slice(4), slice(4, None))]
    assert (parts[0] + parts[1] == whole).all()
