"""What is asked: one scenario, or a grid of them, and the look-up of the names in it."""
