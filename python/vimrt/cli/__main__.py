"""`python -m vimrt.cli` is the command `vimrt`."""

import sys

from . import main

sys.exit(main())
