"""The painted domains: labelled pictures without a download, for training, tests and demonstrations."""
