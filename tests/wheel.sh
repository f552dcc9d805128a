#!/bin/sh
# Installs the wheel in dist/ into an empty environment, away from the checkout, and uses it there:
# without extras, where each thing that needs one has to say which; then with what the demo needs.
set -eu
root=$(pwd)
wheel=$(ls "$root"/dist/adaptcache_diffusers-*.whl)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
export HF_HUB_OFFLINE=1 ADAPTCACHE_HOME="$place/home"
"${PYTHON:-python3}" -m venv "$place/venv"
install() { "$place/venv/bin/python" -m pip --disable-pip-version-check install --quiet --constraint "$root/constraints.txt" "$@"; }
install torch
install "$wheel"
cd "$place"
adaptcache="$place/venv/bin/adaptcache"

refused() {  # refused WORDS COMMAND...: fails with one line that has the words
    words=$1
    shift
    if said=$("$@" 2>&1); then
        echo "not refused: $*" >&2
        exit 1
    fi
    case "$said" in
        *"$words"*) echo "refused, as it should be: $said" ;;
        *) echo "refused with other words: $said" >&2; exit 1 ;;
    esac
}

"$place/venv/bin/python" - <<'PYTHON'
import importlib, pkgutil, sys
import adaptcache
for found in pkgutil.walk_packages(adaptcache.__path__, "adaptcache."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
print("every module is imported without extras:", not {"optuna", "sklearn", "matplotlib", "jinja2", "accelerate"} & set(sys.modules))
PYTHON
"$adaptcache" --version
"$adaptcache" models > /dev/null
"$adaptcache" demo --help > /dev/null
schedule=$("$place/venv/bin/python" -c 'import adaptcache, pathlib; print(pathlib.Path(adaptcache.__file__).parent / "schedules/emoji-flux-32-28-4x.json")')
"$adaptcache" show "$schedule" > /dev/null
"$adaptcache" push "$schedule" ./shared > /dev/null  # its card has no plot without matplotlib
refused "adaptcache-diffusers[report]" "$adaptcache" report "$schedule" --out page.html
refused "adaptcache-diffusers[report]" "$adaptcache" compare --out plots
refused "adaptcache-diffusers[report]" "$adaptcache" tune --plot front.png
refused "adaptcache-diffusers[distributed]" env RANK=0 WORLD_SIZE=2 "$adaptcache" calibrate
refused "transformers" "$adaptcache" calibrate --steps 4 --fit-on 2 --check-on 1

install "$wheel[demo]"
"$adaptcache" calibrate --steps 4 --speed 2 --fit-on 2 --check-on 1 --batch-size 2 --out s.json --json
test -s s.json
echo "the wheel works"
