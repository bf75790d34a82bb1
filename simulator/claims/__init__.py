"""What papers published, row by row, against what this model predicts for the same setup."""
