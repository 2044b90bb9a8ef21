# Sourced by the run_debertav3_<task>.sh scripts; sets
#   project_root  the folder above scripts/
#   python        the active environment's interpreter, else that of .venv in the project's root,
#                 else the `python` (or `python3`) on the PATH
# The current folder is left alone, so that relative paths given as flags mean what they say.
# shellcheck shell=bash

project_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

if [[ -z ${VIRTUAL_ENV:-} && -x $project_root/.venv/bin/python ]]; then
  python=$project_root/.venv/bin/python
elif command -v python >/dev/null 2>&1; then
  python=python
elif command -v python3 >/dev/null 2>&1; then
  python=python3
else
  echo "no Python was found: run 'bash scripts/quickstart.sh' first, it makes an environment" >&2
  exit 1
fi
