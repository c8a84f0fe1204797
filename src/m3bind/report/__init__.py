"""What people look at: the page of a run, its plots, galleries and pictures."""
