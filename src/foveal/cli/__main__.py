"""`python -m foveal.cli`, the command where no script is installed."""

import sys

from foveal.cli import main

if __name__ == "__main__":
    sys.exit(main())
