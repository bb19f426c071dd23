"""Losses, one idea a module: what a step of training asks of a network."""
