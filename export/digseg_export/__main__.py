"""`python -m digseg_export` is `digseg-export`."""

from digseg_export.cli import main

if __name__ == "__main__":
    main()
