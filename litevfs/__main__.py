"""`python -m litevfs`: the command line, as the installed `litevfs` has it."""

import sys

from litevfs.cli import main

if __name__ == "__main__":
    sys.exit(main())
