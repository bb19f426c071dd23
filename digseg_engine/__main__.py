"""`python -m digseg_engine` is `digseg`; `accelerate launch -m digseg_engine train ...` trains in several processes."""

from digseg_engine.cli import main

main()
