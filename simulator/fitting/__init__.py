"""Fits of the time functions to measured rows; needs pandas and scipy, which are imported inside."""
