#!/bin/sh
# All the work of the images: a virtual environment without pip, tests or headers. It needs no rights but to write into
# the directories it is given, and works on what lies in the source tree around it.
#
#   sh deploy/docker/install.sh needs DIRECTORY [EXTRA...]   what fledge needs; "train dicom" at a site
#   sh deploy/docker/install.sh code DIRECTORY [ROOT]        fledge itself; below ROOT, if it is to be copied from there
#
# PYTHON names the interpreter. Mirrors and proxies are told to pip by pip's own variables; TORCH_INDEX_URL names an
# index for torch alone; certificates in deploy/docker/ca/*.crt are trusted beside the usual ones.
set -eu
what=$1
target=$2
shift 2
here=$(cd "$(dirname "$0")" && pwd)
source=$(cd "$here/../.." && pwd)

tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
"${PYTHON:-python3}" -m venv "$tools/venv"
if [ ! -e "$target/bin/python" ]; then
    "${PYTHON:-python3}" -m venv --without-pip "$target"
fi
if ls "$here"/ca/*.crt >/dev/null 2>&1; then
    usual=${PIP_CERT:-$("$tools/venv/bin/python" -c 'import pip._vendor.certifi as usual; print(usual.where())')}
    cat "$usual" "$here"/ca/*.crt >"$tools/ca.pem"
    export PIP_CERT="$tools/ca.pem"
fi
install() {
    "$tools/venv/bin/pip" --python "$target/bin/python" install \
        --quiet --no-cache-dir --no-warn-script-location --disable-pip-version-check \
        -c "$source/constraints.txt" "$@"
}

if [ "$what" = code ]; then
    install --no-deps ${1:+--root "$1"} "$source"
    exit
fi
if [ -n "${TORCH_INDEX_URL:-}" ] && [ $# -gt 0 ]; then
    (export PIP_INDEX_URL="$TORCH_INDEX_URL" PIP_EXTRA_INDEX_URL='' && install --no-deps torch)
fi
"$tools/venv/bin/python" -c '
import sys, tomllib
with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
extras = (project["optional-dependencies"][extra] for extra in sys.argv[2:])
print(*project["dependencies"], *(each for extra in extras for each in extra), sep="\n")
' "$source/pyproject.toml" "$@" >"$tools/needs.txt"
install -r "$tools/needs.txt"

# What only those need who test or compile these libraries: a third of a site's image.
packages=$(echo "$target"/lib/python3*/site-packages)
find "$packages" -type d \( -name test -o -name tests -o -name SelfTest -o -path "$packages/torch/include" \) -prune -exec rm -r {} +
find "$packages" -type f \( -name '*.a' -o -name '*.h' -o -name '*.pxd' -o -name '*.pyx' \
    -o -path "$packages/torch/bin/*" ! -name torch_shm_manager \) -delete
"$tools/venv/bin/python" "$here/strip.py" "$packages"
