#!/bin/sh
# Installs fledge from the source tree that this script lies in: all the work of the images. It needs no rights but to
# write into DIRECTORY; called again with other extras it adds what is missing.
#
#   sh deploy/docker/install.sh DIRECTORY [EXTRAS]      EXTRAS: nothing for a hub, "[train,dicom]" for a site
#
# PYTHON names the interpreter; mirrors and proxies are told to pip by pip's own variables.
set -eu
target=$1
extras=${2:-}
source=$(cd "$(dirname "$0")/../.." && pwd)

if [ ! -x "$target/bin/pip" ]; then
    "${PYTHON:-python3}" -m venv "$target"
fi
"$target/bin/pip" install --quiet --no-cache-dir --disable-pip-version-check \
    -c "$source/constraints.txt" "$source$extras"
"$target/bin/fledge" --version
