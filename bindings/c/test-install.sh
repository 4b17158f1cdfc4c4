#!/bin/sh
# Installs the C library somewhere and builds the programs of tests/c/outside with it, by
# pkg-config and by CMake, and beside the system's zstd.
#
# Takes the options of install.sh, but for the folders. For another machine set RUN to what runs
# its programs:
#   RUN="qemu-aarch64-static -L /usr/aarch64-linux-gnu" \
#       bindings/c/test-install.sh --target aarch64-unknown-linux-gnu
set -eu

fail() {
    echo "test-install.sh: $*" >&2
    exit 1
}
need() {
    command -v "$1" >/dev/null || fail "$1 is missing: install the package $2${target:+ for $target}"
}

target=''
for argument in "$@"; do
    case $argument in
        --target=*) target=${argument#*=} ;;
        --target) target=next ;;
        *) [ "$target" != next ] || target=$argument ;;
    esac
done
if [ -n "$target" ]; then
    tools=$(echo "$target" | sed 's/-unknown-/-/')-
    CC=${CC:-${tools}gcc} CXX=${CXX:-${tools}g++}
fi
export CC="${CC:-cc}" CXX="${CXX:-c++}"
need "$CC" gcc
need "$CXX" g++
need make make
need cmake cmake
need pkg-config pkg-config

here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

step() { printf '\n-- %s\n' "$*"; }

# Runs programs, each of which must say that a failure inside the library came out as an error.
run() {
    for program in "$@"; do
        echo "$program"
        ${RUN:-} "./$program" >"$work/said"
        for words in '^ArrowQuant [0-9]' 'on purpose'; do
            grep -q "$words" "$work/said" || fail "$program said: $(cat "$work/said")"
        done
    done
}

step "installing"
"$here/install.sh" "$@" --prefix "$work/first"
# Where it was made does not matter.
mv "$work/first" "$work/moved"
lib=$work/moved/lib
cp -R "$here/../../tests/c/outside" "$work/outside"

step "pkg-config"
cd "$work/outside/make"
export PKG_CONFIG_PATH="$lib/pkgconfig"
make --quiet all
run c-shared c-static c-all-static c-small cpp-shared cpp-static

step "CMake"
# Into the folder $1, with version $2 and other settings.
configure() {
    folder=$work/$1 wanted=$2
    shift 2
    cmake -S "$work/outside/cmake" -B "$folder" -DCMAKE_PREFIX_PATH="$work/moved" \
        -DWANTED="$wanted" ${target:+-DCMAKE_SYSTEM_NAME=Linux} "$@" >"$work/cmake.log" 2>&1
}
version=$(pkg-config --modversion arrowquant)
major=${version%%.*} minor=${version#*.}
minor=${minor%%.*}
# This version, its series, ranges.
for wanted in "" "$version" "$version;EXACT" "$major.$minor" "$major" "0...$version" "$major.$minor...99"; do
    configure cmake "$wanted" || fail "version $wanted was not found: $(cat "$work/cmake.log")"
done
for other in "$major.$((minor + 1))" "$((major + 1))" "$version.1" "0...<$version"; do
    ! configure other "$other" || fail "version $other was found in $version"
    grep -q 'considered but not accepted' "$work/cmake.log" || fail "$(cat "$work/cmake.log")"
    rm -rf "$work/other"
done
cmake --build "$work/cmake" >"$work/cmake.log" || fail "$(cat "$work/cmake.log")"
cd "$work/cmake"
run c-shared c-static c-ArrowQuant cpp-shared cpp-static cpp-ArrowQuant

step "only the static library"
mkdir "$work/kept"
mv "$lib"/libarrowquant.so* "$work/kept"
configure static "" "-DKINDS=static;ArrowQuant" || fail "$(cat "$work/cmake.log")"
cmake --build "$work/static" >"$work/cmake.log" || fail "$(cat "$work/cmake.log")"
cd "$work/static"
run c-ArrowQuant
mv "$work/kept"/* "$lib"

if [ -n "$target" ]; then
    echo "(another machine's zstd is not tried)"
else
    step "beside the system's zstd"
    cd "$work/outside/make"
    echo '#include <zstd.h>' | "$CC" -E - >/dev/null 2>&1 || fail "zstd.h is missing: install libzstd-dev"
    # Words of pkg-config are flags, so they are not quoted.
    flags=$(pkg-config --cflags arrowquant)
    shared="$(pkg-config --libs arrowquant) -Wl,-rpath,$lib"
    static="$lib/libarrowquant.a $(pkg-config --static --libs-only-l arrowquant | sed 's/-larrowquant//')"
    # shellcheck disable=SC2086
    for zstd in -lzstd -l:libzstd.a; do
        "$CC" $flags ../beside_libzstd.c ../check.c $shared $zstd -o shared
        "$CC" $flags ../beside_libzstd.c ../check.c $static $zstd -o ours-first
        "$CC" $flags ../beside_libzstd.c ../check.c $zstd $static -o zstd-first
        run shared ours-first zstd-first
    done
fi

step "other folders"
"$here/install.sh" "$@" --destdir "$work/package" --prefix /opt/arrow --libdir lib/machine >/dev/null
rm -rf "$work/moved"
export PKG_CONFIG_PATH="$work/package/opt/arrow/lib/machine/pkgconfig"
cd "$work/outside/make"
rm -f c-static c-shared
make --quiet c-static c-shared
run c-static c-shared
! grep -r "$work" "$work/package/opt/arrow/lib/machine/pkgconfig" \
    "$work/package/opt/arrow/lib/machine/cmake" || fail "a path of this machine was installed"
# It is found there by CMake, too, whose folders for libraries are others.
configure other "" -DArrowQuant_DIR="$work/package/opt/arrow/lib/machine/cmake/ArrowQuant" ||
    fail "$(cat "$work/cmake.log")"
cmake --build "$work/other" >"$work/cmake.log" || fail "$(cat "$work/cmake.log")"
cd "$work/other"
run c-static c-shared cpp-ArrowQuant

step "all well"
