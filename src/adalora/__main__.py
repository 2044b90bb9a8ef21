"""``python -m adalora`` is the ``adalora`` command."""

import sys

from adalora.cli import main

sys.exit(main())
