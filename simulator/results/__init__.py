"""What is told: answers and their rows, verdicts, summaries, quality."""
