"""From a bundle to masks: the engine, its backends and the choice between them. Never loads PyTorch by itself."""
