"""What main.py does: one file for each task, and what they share. Nothing else sees the options."""
