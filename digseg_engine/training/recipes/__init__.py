"""Whole trainings: which stages, in which order, for how long."""
