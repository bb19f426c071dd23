"""A bundle made public: its model card, and how both reach a hub. Torch-free."""
