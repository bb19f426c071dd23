"""How networks are trained: the loop and its states, runs of several stages, logs, and the record of a checkpoint."""
