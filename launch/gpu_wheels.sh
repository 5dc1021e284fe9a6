#!/usr/bin/env bash
# Collects the wheels that a GPU machine without network lacks: those of requirements.txt except what the machine has.
#
#   launch/gpu_wheels.sh                     # run here, with network; then copy the repository and wheels/ to the machine
#   launch/gpu_wheels.sh --python=3.11 --has=packages.txt
#
# --folder=wheels    output folder; existing wheels in it are replaced
# --python=3.12      the machine's Python; the machine is Linux on x86_64
# --has=FILE         names of the packages that the machine has, one per line (default: launch/gpu_packages.txt)
# --limit=60         maximum total size of the wheels in MB
# --dry_run          print the commands only
#
# At the end the script prints the commands that install the wheels on the machine. Packages that the machine has are kept
# in their versions, which may be older or newer than those of requirements.txt.
set -euo pipefail
start="$PWD"
cd "$(dirname "$0")/.."
source launch/options.sh
OPTIONS="folder python has limit"
folder=wheels python=3.12 has="" limit=60
read_options "$@"
need folder python limit
[[ "$python" =~ ^3\.[0-9]+$ ]] || fail "--python=$python is not a version such as 3.12"
[[ "$limit" =~ ^[0-9]+$ ]] || fail "--limit=$limit is not a number of MB"
if [ -z "$has" ]; then
    has=launch/gpu_packages.txt
elif [[ "$has" != /* ]]; then
    has="$start/$has"
fi
[[ "$folder" == /* ]] || folder="$start/$folder"
[ -f "$has" ] || fail "there is no $has; --has= is a file of names, one a line"
interpreter="${PYTHON:-python3}"

# Packages that other requirements need and crystal_jax does not import. crystal_jax reads one file of larixite;
# larixite's own code needs the Materials Project's client and X-ray tables. pymatgen imports plotly only to draw, and
# TensorFlow Datasets imports simple-parsing only for its command line. The huggingface_hub of requirements.txt needs
# httpx2; the machine's own version brings what it needs.
unused="annotated-types arro3-core blake3 boto3 botocore deltalake deprecated docstring-parser emmet-core httpcore2
    httpx2 inflect jaraco-functools jmespath latexcodec more-itertools mp-api platformdirs plotly pubchempy
    pybtex pydantic pydantic-core pydantic-settings pymatgen-io-validation python-dotenv s3transfer
    simple-parsing sqlalchemy truststore typeguard typing-inspection xraydb"
# The index has these packages as source only. They are pure Python, so they are built here.
from_source="bibtexparser promise"

# Requirements for the machine, one per line. The script uses pip's copy of `packaging`, so it needs no installation.
wanted="$("$interpreter" - requirements.txt "$has" "$python" "$unused" << 'END'
import pathlib
import sys

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name

requirements, has, python, unused = sys.argv[1:]
machine = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": f"{python}.0",
    "python_version": python,
    "sys_platform": "linux",
}


def lines(path):
    stripped = (line.split("#")[0].strip() for line in pathlib.Path(path).read_text().splitlines())
    return [line for line in stripped if line]


left_out = {canonicalize_name(name) for name in [*lines(has), *unused.split()]}
for line in lines(requirements):
    requirement = Requirement(line)
    name = canonicalize_name(requirement.name)
    if name not in left_out and (requirement.marker is None or requirement.marker.evaluate(machine)):
        print(f"{name}{requirement.specifier}")
END
)" || fail "cannot tell what the machine needs"
[ -n "$wanted" ] || fail "the machine has all of requirements.txt; there is nothing to collect"

wheels=() sources=()
for requirement in $wanted; do
    case " $from_source " in
        *" ${requirement%%==*} "*) sources+=("$requirement") ;;
        *) wheels+=("$requirement") ;;
    esac
done
# pip downloads only wheels with these tags; a machine with glibc 2.34 runs all of them.
platforms=()
for tag in _2_34 _2_31 _2_28 _2_27 _2_24 _2_17 2014 2010 1; do
    platforms+=("--platform=manylinux${tag}_x86_64")
done

new="$(mktemp -d)"
trap 'rm -rf "$new"' EXIT
if [ ${#wheels[@]} -gt 0 ]; then
    run "$interpreter" -m pip download --quiet --no-deps --only-binary=:all: --python-version="$python" \
        --implementation=cp "${platforms[@]}" --dest="$new" "${wheels[@]}"
fi
if [ ${#sources[@]} -gt 0 ]; then
    run "$interpreter" -m pip wheel --quiet --no-deps --wheel-dir="$new" "${sources[@]}"
fi
[ "$dry_run" = no ] || exit 0

bytes="$(cat "$new"/*.whl | wc -c)"
megabytes="$(((bytes + 999999) / 1000000))"
[ "$megabytes" -le "$limit" ] || fail "the wheels have $megabytes MB, more than --limit=$limit; see what $has lacks"
mkdir -p "$folder"
rm -f "$folder"/*.whl # with two versions of a package, pip would install neither
cp "$new"/*.whl "$folder"
for wheel in "$folder"/*.whl; do
    printf '%12s  %s\n' "$(wc -c < "$wheel")" "$(basename "$wheel")"
done
cat << END
$megabytes MB in $folder. On the machine, where DIR is a new folder outside the repository:
  python3 -m pip install --no-index --no-deps --no-compile --upgrade --target DIR $(basename "$folder")/*.whl
  export PYTHONPATH=DIR
END
