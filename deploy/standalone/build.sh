#!/usr/bin/env bash
# Makes one file of Corral and everything that it needs, for machines that have Python and nothing else:
#
#   deploy/standalone/build.sh [FILE]        left out: dist/corral.pyz
#   ./dist/corral.pyz demo
#
# It fits the machine and the Python that it was made with (PYTHON=python3.13 …), as what is compiled in it does. It
# unpacks itself once to ~/.shiv, or to SHIV_ROOT.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
file=$(realpath -m "${1:-dist/corral.pyz}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1

mkdir -p "$(dirname "$file")"
"$python" -m venv "$work/build"
pip() { "$work/build/bin/pip" "$@"; }
pip install --quiet --require-hashes --only-binary :all: -r deploy/standalone/build.lock
pip install --quiet --require-hashes --only-binary :all: --target "$work/site" -r deploy/docker/requirements.lock
# From a copy, so that the checkout stays as it is.
mkdir "$work/source"
cp -a pyproject.toml README.md LICENSE src gateway probes policies emulator laboratory "$work/source"
pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$work/wheel" "$work/source"
rm -rf "$work/site/bin"  # scripts of others; pip would not add to that folder
pip install --quiet --no-index --no-deps --target "$work/site" "$work"/wheel/*.whl
version=$("$work/build/bin/python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
# Its own child processes, such as the emulators of the demo, find it by PYTHONPATH.
"$work/build/bin/shiv" --site-packages "$work/site" --console-script corral --compressed --extend-pythonpath \
    --python "/usr/bin/env $version" --output-file "$file"
echo "$file"
