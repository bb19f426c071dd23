"""Entry point of `digseg`; everything is in `commands`."""

from digseg_engine.commands.main import main

__all__ = ["main"]
