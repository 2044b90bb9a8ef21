# Sourced by quickstart.sh and test.sh: sees to it that an environment with the pinned requirements
# and both packages exists, and sets
#   project_root        the folder above scripts/
#   environment_python  the interpreter to run things with
# The active virtual environment is used if there is one, else .venv in the project's root is made.
# A stamp inside the environment, written last, records what was installed: while it matches, a
# further run installs nothing and needs no network. PYTHON=/path/to/python chooses the interpreter
# that .venv is made with. Written for bash 3.2 and later (macOS ships that).
# shellcheck shell=bash

project_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

say() { printf 'set-up: %s\n' "$*" >&2; }

fail() {
  printf 'set-up failed: %s\n' "$*" >&2
  exit 1
}

# True if $1 is a Python that this project runs on. A pyenv shim may exist and yet not run.
is_recent_python() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# Prints the interpreter to make .venv with. Python 3.11 is tried first: the tests run on it.
find_base_python() {
  local candidate without_venv=""
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3 python; do
    command -v "$candidate" >/dev/null 2>&1 || continue
    is_recent_python "$candidate" || continue
    if "$candidate" -c 'import venv, ensurepip' >/dev/null 2>&1; then
      printf '%s\n' "$candidate"
      return
    fi
    without_venv=$candidate
  done
  if [[ -n $without_venv ]]; then
    fail "$without_venv lacks the modules venv and ensurepip; on Debian or Ubuntu type" \
      "'apt-get install python3-venv' and run this again."
  fi
  fail "no Python 3.11 or later was found (tried python3.11, python3.12, python3.13, python3);" \
    "install one, or name it: PYTHON=/path/to/python bash $0"
}

# Prints one line that changes whenever the installation would: interpreter, place, requirements.
installation_key() {
  "$environment_python" -I - "$project_root" <<'PYTHON_END'
import hashlib
import pathlib
import sys

root = pathlib.Path(sys.argv[1])
digest = hashlib.sha256(f"{sys.version_info[:2]} {root}".encode())
for name in ("requirements.txt", "setup.py", "src/adalora/__init__.py", "pyproject.toml",
             "loralib/setup.py", "loralib/pyproject.toml"):
    file = root / name
    digest.update(name.encode() + (file.read_bytes() if file.is_file() else b""))
print(digest.hexdigest())
PYTHON_END
}

# True if both packages are still found in this checkout (someone may have uninstalled one since).
packages_are_here() {
  "$environment_python" -I - "$project_root" >/dev/null 2>&1 <<'PYTHON_END'
import importlib.util
import pathlib
import sys

root = pathlib.Path(sys.argv[1])
for name in ("loralib", "adalora"):
    found = importlib.util.find_spec(name)
    if found is None or not found.origin or root not in pathlib.Path(found.origin).resolve().parents:
        sys.exit(1)
PYTHON_END
}

# Waits for process $1 while showing that it lives: a counting line on a terminal, else a line now
# and then. $2 is pip's log, whose newest package name is shown.
show_progress() {
  local seconds=0 package
  while kill -0 "$1" 2>/dev/null; do
    sleep 1
    seconds=$((seconds + 1))
    if [[ -t 2 ]]; then
      package=$(sed -n 's/^Collecting \([A-Za-z0-9._-]*\).*/\1/p' "$2" | tail -n 1)
      grep -q '^Installing collected' "$2" && package="unpacking"
      printf '\rset-up: %s s  %-40.40s' "$seconds" "$package" >&2
    elif ((seconds % 20 == 0)); then
      say "still installing, $seconds s"
    fi
  done
  if [[ -t 2 ]]; then printf '\r%-60s\r' "" >&2; fi
}

install_packages() {
  local log=$environment/adalora-install.log pid
  "$environment_python" -m pip --version >/dev/null 2>&1 ||
    "$environment_python" -m ensurepip >/dev/null 2>&1 ||
    fail "the environment $environment has no pip and no ensurepip to get one from;" \
      "deactivate it and run this again, or install pip into it."
  say "installing the packages of requirements.txt into $environment"
  say "(once; a few minutes, mostly PyTorch; details in $log)"
  "$environment_python" -m pip install --no-input --disable-pip-version-check --progress-bar off \
    -r "$project_root/requirements.txt" -e "$project_root/loralib" -e "$project_root" \
    >"$log" 2>&1 </dev/null &
  pid=$!
  trap 'kill "$pid" 2>/dev/null; exit 130' INT TERM
  show_progress "$pid" "$log"
  trap - INT TERM
  if ! wait "$pid"; then
    printf '%s\n' "--- the end of pip's log ---" >&2
    tail -n 15 "$log" >&2
    fail "pip could not install the packages (log: $log); is a package index within reach?"
  fi
}

set_up_environment() {
  local stamp key base
  if [[ -n ${VIRTUAL_ENV:-} ]]; then
    environment=$VIRTUAL_ENV
    environment_python=$environment/bin/python
    is_recent_python "$environment_python" ||
      fail "the active environment $environment has no working Python 3.11 or later;" \
        "deactivate it and run this again."
  else
    environment=$project_root/.venv
    environment_python=$environment/bin/python
    if ! is_recent_python "$environment_python"; then
      base=$(find_base_python) || exit 1
      say "making the virtual environment $environment with $("$base" --version 2>&1)"
      "$base" -m venv --clear "$environment" || fail "'$base -m venv $environment' did not work."
    fi
  fi
  stamp=$environment/adalora-installed
  key=$(installation_key)
  if [[ -f $stamp && $(<"$stamp") == "$key" ]] && packages_are_here; then
    return
  fi
  rm -f "$stamp"
  install_packages
  packages_are_here ||
    fail "pip finished, but loralib or adalora is not importable from $project_root;" \
      "remove the folder $environment and run this again."
  printf '%s\n' "$key" >"$stamp.new"
  mv "$stamp.new" "$stamp"
  say "done"
}

set_up_environment
