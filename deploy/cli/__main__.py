"""``python -m deploy.cli``, the same as ``simclr-deploy``."""

import sys

from deploy.cli.main import main

sys.exit(main())
