"""Bundles on a hub: fetched by name into this user's cache, and pushed with a model card. Torch-free."""
