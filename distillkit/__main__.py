"""`python -m distillkit` is `distillkit`."""

import sys

from distillkit.cli import main

sys.exit(main())
