"""The colours of the figures, and what stands for them on the page, where they follow light and dark."""

INK, LINE = "#5b6472", "#d8dde6"
SERIES = "#0072b2", "#d55e00", "#b0568c", "#b07d00"  # of the arms; Okabe and Ito's, told apart without red or green
SUPERVISED, NEW = "#7a8494", "#009e73"
GOOD, BAD, NEW_WRONG = SERIES[0], SERIES[1], SERIES[3]

ON_PAGE = {INK: "var(--soft)", LINE: "var(--line)", SUPERVISED: "var(--grey)", NEW: "var(--green)",
           **{color: f"var(--s{number})" for number, color in enumerate(SERIES)}}
