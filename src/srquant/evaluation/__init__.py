"""Scores, verification and checks of quantised networks."""
