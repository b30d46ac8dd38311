"""`python -m layerwise`: the command, where it is not on the path; torchrun starts it so."""

import sys

from layerwise.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
