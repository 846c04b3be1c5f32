#!/usr/bin/env bash
# Makes the environments of the peers that `sumfold bench` compares with, one each: they cannot share one.
#
#   benchmarks/environments.sh [--dir DIR] [PEER …]     torch fedjax pfl flower tff; all of them if none is named
#
# DIR is ~/.cache/sumfold-bench by default, where `sumfold bench` looks; PYTHON names the interpreter (3.11, which pfl
# and TFF need). The versions are those of src/sumfold/bench/requirements. What a file NAME-alone.txt lists is
# installed without its own requirements: TFF asks for a version of jaxlib that is not to be had any more.
set -euo pipefail
here=$(cd "$(dirname "$0")/../src/sumfold/bench/requirements" && pwd)
folder=${XDG_CACHE_HOME:-$HOME/.cache}/sumfold-bench
if [[ ${1:-} == --dir ]]; then
    folder=$2
    shift 2
fi
peers=("$@")
[[ ${#peers[@]} -gt 0 ]] || peers=(torch fedjax pfl flower tff)

export PIP_DISABLE_PIP_VERSION_CHECK=1
failed=()
for peer in "${peers[@]}"; do
    if [[ ! -f $here/$peer.txt ]]; then
        echo "no peer $peer; there are: torch fedjax pfl flower tff" >&2
        exit 2
    fi
    echo "$peer → $folder/$peer"
    python=$folder/$peer/bin/python
    if ! { [[ -x $python ]] || "${PYTHON:-python3.11}" -m venv "$folder/$peer"; } ||
        ! "$python" -m pip install --quiet -r "$here/$peer.txt" ||
        { [[ -f $here/$peer-alone.txt ]] && ! "$python" -m pip install --quiet --no-deps -r "$here/$peer-alone.txt"; }; then
        failed+=("$peer")
    fi
done
if [[ ${#failed[@]} -gt 0 ]]; then
    echo "not installed: ${failed[*]}; the others can be used" >&2
    exit 1
fi
