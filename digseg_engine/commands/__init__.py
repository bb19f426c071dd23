"""The command lines `digseg` and (by the same means) `digseg-export`: one module per command, every option declared once."""
