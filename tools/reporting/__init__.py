"""The parts of the report: numbers of a round, charts, pictures, and the page."""
