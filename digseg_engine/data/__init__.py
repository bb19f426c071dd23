"""Labelled pictures: data sets and their layouts, classes and masks, crops, and the batches made of them."""
