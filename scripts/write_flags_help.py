#!/usr/bin/env python
"""Write the text that ``run_glue.py --help`` shows at once; run it after a change of the flags."""

from adalora.commands.train import HELP_FILE, PROGRAM, write_help
from adalora.training.arguments.parser import build_parser

if __name__ == "__main__":
    write_help(build_parser(PROGRAM).format_help())
    print(f"wrote {HELP_FILE}")
