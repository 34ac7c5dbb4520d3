"""``python -m kedit``."""

import sys

from kedit.cli import main

if __name__ == "__main__":
    sys.exit(main())
