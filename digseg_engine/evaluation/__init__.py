"""How good a model is: metrics, the protocols they are measured by, predictors, and the report."""
