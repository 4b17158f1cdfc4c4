# shellcheck shell=bash disable=SC2034
# What the steps share. Each sources it, and can be run alone, from anywhere: what it needs is installed then.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

# A folder of the step's own, gone at its end; and nothing is left in the repository.
scratch=$(mktemp -d)
leftover=$scratch
before=$(git status --porcelain)
end() {
    local code=$?
    rm -rf "$scratch" "$leftover"
    if ((code == 0)) && [[ $(git status --porcelain) != "$before" ]]; then
        echo "$0 has left something in the repository:"
        git status --short
        exit 1
    fi
}
trap end EXIT

.ci/tools "$(basename "$0")"

part() { printf '\n-- %s\n' "$*"; }

# What `cargo build --release` builds, and where. Python, its folder of programs, and what wheels are called.
built=${CARGO_TARGET_DIR:-$PWD/target}/release
case $(uname -s) in
    Linux) program=arrowquant library=libarrowquant.so python=python3 bin=bin wheel=linux ;;
    Darwin) program=arrowquant library=libarrowquant.dylib python=python3 bin=bin wheel=macosx ;;
    *) program=arrowquant.exe library=arrowquant.dll python=python bin=Scripts wheel=win ;;
esac

# Does nothing where all is there.
build() { cargo build --release --locked; }

# The demonstration model as this machine quantizes it: $scratch/here.parquet.
quantize_here() {
    build
    "$built/$program" quantize --quiet --bits 4 examples/models/dit-digits.safetensors "$scratch/here.parquet"
}

# A virtual environment in the scratch folder: venv NAME [ARGUMENT OF pip install]...
venv() {
    "$python" -m venv "$scratch/$1"
    (($# == 1)) || "$scratch/$1/$bin/python" -m pip --quiet install "${@:2}"
}

# A program of C or C++ with the release, whose library is found by its SONAME: link COMPILER...
link() {
    mkdir -p "$scratch/lib"
    ln -sf "$built/libarrowquant.so" "$scratch/lib/libarrowquant.so"
    ln -sf "$built/libarrowquant.so" "$scratch/lib/libarrowquant.so.1"
    "$@" -g -Iinclude "-L$scratch/lib" -larrowquant "-Wl,-rpath,$scratch/lib" -lm -pthread
}
