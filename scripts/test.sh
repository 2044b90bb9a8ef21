#!/usr/bin/env bash
# Sets the environment up as the quickstart does, then runs the linter, the type checker and the
# test suite. Arguments go to pytest:  bash scripts/test.sh tests/report -k table
#   bash scripts/test.sh                  everything: about twelve minutes on two cores
#   bash scripts/test.sh -m "not slow"    the first tier: about five
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_environment.sh"

cd "$project_root"
# Builds of PyTorch for a CPU come without Triton, whose interpreter runs the kernels in the tests.
if [[ $(uname) == Linux ]] && ! "$environment_python" -c \
  'import importlib.util, sys; sys.exit(importlib.util.find_spec("triton") is None)'; then
  "$environment_python" -m pip install --quiet --no-input --disable-pip-version-check triton==3.7.1 \
    </dev/null || echo "triton could not be installed; the tests of its kernels are skipped"
fi
echo "ruff"
"$environment_python" -m ruff check .
# The type checker works on one core while the first tests run, and its word comes last.
types=$(mktemp)
trap 'rm -f "$types"' EXIT
"$environment_python" -m mypy >"$types" 2>&1 &
type_checker=$!

echo "pytest"
# Two workers of one thread each take less time than one of two threads: most of a test is Python.
# A file stays whole, so that what its tests share is made once and no port is taken twice; the order
# is that of tests/conftest.py, which begins with what takes longest.
export OMP_NUM_THREADS=1
status=0
"$environment_python" -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@" ||
  status=$?
echo "mypy"
wait "$type_checker" || status=1
cat "$types"
exit "$status"
