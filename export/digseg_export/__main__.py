"""`python -m digseg_export` is `digseg-export`."""

import sys

from digseg_export.cli import main

if __name__ == "__main__":
    sys.exit(main())
