"""The report of a run: its page, plots, galleries and tables."""
