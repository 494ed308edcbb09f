"""`python -m lccp_sim` is the command `lccp`."""

import sys

from lccp_sim.cli import main

sys.exit(main())
