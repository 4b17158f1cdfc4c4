#!/bin/sh
# Installs the C library, on systems whose object files are ELF (Linux): the one in the target folder if
# there is one, which cargo brings up to date, else one that it builds.
set -eu

usage() {
    cat <<'EOF'
usage: install.sh [options]

  --prefix DIR      where to install (/usr/local); the result may be moved later
  --libdir DIR      folder of the libraries below the prefix (lib)
  --destdir DIR     put in front of every path, for making packages
  --profile NAME    builds that profile of Cargo.toml: dist, which is what is shipped, or release
  --rebuild         the same as --profile dist, which takes minutes
  --target TRIPLE   machine to build for, such as aarch64-unknown-linux-gnu
  --built DIR       builds nothing, takes libarrowquant.so and libarrowquant.a from DIR

Without --profile, --rebuild and --built it takes the newest library in the target folder, of dist or
release. Only if that is older than its sources, or there is none (then dist), cargo compiles.

CARGO_TARGET_DIR is respected. CC, AR, LD, NM, OBJCOPY and READELF name other tools; with
--target they start as those of that machine, such as aarch64-linux-gnu-gcc.
EOF
}

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

prefix=/usr/local libdir=lib destdir='' profile='' target='' built=''
while [ $# -gt 0 ]; do
    option=$1
    case $option in
        -h | --help) usage && exit ;;
        --rebuild)
            profile=${profile:-dist}
            shift
            continue
            ;;
        --*=*) value=${option#*=} option=${option%%=*} ;;
        --*)
            [ $# -ge 2 ] || fail "$option needs a value"
            value=$2
            shift
            ;;
        *) usage >&2 && exit 2 ;;
    esac
    shift
    case $option in
        --prefix) prefix=$value ;;
        --libdir) libdir=${value%/} ;;
        --destdir) destdir=$value ;;
        --profile) profile=$value ;;
        --target) target=$value ;;
        --built) built=$value ;;
        *) usage >&2 && exit 2 ;;
    esac
done

absolute() {
    case $1 in
        '' | /*) echo "$1" ;;
        *) echo "$PWD/$1" ;;
    esac
}
prefix=$(absolute "${prefix:-/}")
destdir=$(absolute "$destdir")
built=$(absolute "$built")
case /$libdir/ in
    //* | */./* | */../* | *//*) fail "--libdir is below the prefix, such as lib64: $libdir" ;;
esac

case ${target:-$(uname -s)} in
    *linux* | *Linux* | *bsd* | *BSD*) ;;
    *) fail "only for systems whose object files are ELF, such as Linux" ;;
esac

# Tools for another machine are called after its triple without the vendor.
tools=''
if [ -n "$target" ]; then
    tools=$(echo "$target" | sed 's/-unknown-/-/')-
fi
CC=${CC:-${tools:+${tools}gcc}}
CC=${CC:-cc}
AR=${AR:-${tools}ar}
LD=${LD:-${tools}ld}
NM=${NM:-${tools}nm}
OBJCOPY=${OBJCOPY:-${tools}objcopy}
READELF=${READELF:-${tools}readelf}
cargo=${CARGO:-cargo}
for tool in "$AR" "$LD" "$NM" "$OBJCOPY" "$READELF"; do
    command -v "$tool" >/dev/null || fail "$tool is missing: install binutils (${target:-this machine})"
done

home=$(cd "$(dirname "$0")" && pwd)
cd "$home/../.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1) # the first is that of the package

# Builds a profile for this script alone. The crate types are named, as cargo leaves link-time
# optimization out where an rlib is asked for.
build() {
    set -- --locked -p arrowquant --lib --profile "$1" --no-default-features --features capi
    if [ -n "$target" ]; then
        set -- "$@" --target "$target"
        linker=CARGO_TARGET_$(echo "$target" | tr 'a-z.-' 'A-Z__')_LINKER
        export CC AR "$linker=$CC"
    fi
    "$cargo" rustc "$@" --crate-type cdylib,staticlib
}

# The profile of the newest library in the target folder $1, or nothing. It is looked for where the
# compiler leaves it: `cargo install` and `cargo test` copy it no further.
newest() {
    # shellcheck disable=SC2012,SC2045 # names of our own, by time
    for library in $(ls -t "$1/dist/deps/libarrowquant.so" "$1/release/deps/libarrowquant.so" 2>/dev/null); do
        folder=${library%/deps/*}
        if [ -e "$folder/deps/libarrowquant.a" ]; then
            echo "${folder##*/}"
            return
        fi
    done
}

if [ -z "$built" ]; then
    command -v "$CC" >/dev/null || fail "$CC is missing: install a C compiler (${target:-this machine})"
    folder=$("$cargo" metadata --locked --no-deps --format-version 1 |
        sed 's/.*"target_directory":"\([^"]*\)".*/\1/')${target:+/$target}
    if [ -n "$profile" ]; then
        build "$profile"
    else
        profile=$(cd "$folder" 2>/dev/null && newest .)
        # Cargo itself knows whether that is as its sources are: then it does nothing. It is asked in the
        # way it was built by: dist by this script, release by cargo build --release.
        case $profile in
            release)
                echo "install.sh: taking the library in $folder/release (--rebuild builds what is shipped)"
                "$cargo" build --locked -p arrowquant --lib --profile release ${target:+--target "$target"}
                ;;
            dist)
                echo "install.sh: taking the library in $folder/dist"
                build dist
                ;;
            *)
                profile=dist
                echo "install.sh: building the library in $folder/dist, which takes minutes"
                build dist
                ;;
        esac
    fi
    built=$folder/$profile
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# What the shared library exports is all that the static one shows.
"$NM" -D --defined-only "$built/libarrowquant.so" | sed -n 's/.* \(aq_[a-z0-9_]*\)$/\1/p' >"$work/names"
[ -s "$work/names" ] || fail "$built/libarrowquant.so exports nothing"

# The archive that Rust makes shows what it is made of, too: zstd, and Rust's standard library, of
# which a program may have its own. So it becomes one object with what these functions need, where
# all else is local. Sections stay apart, for programs that are linked with --gc-sections. Groups
# have to go: the linker keeps one group of a name in a program, and local symbols of another one
# would point nowhere.
sed 's/^/--undefined=/' "$work/names" >"$work/roots"
"$LD" -r --gc-sections --force-group-allocation "@$work/roots" \
    -o "$work/all.o" "$built/libarrowquant.a"
# zstd calls these where a program has them.
for trace in compress_begin compress_end decompress_begin decompress_end; do
    echo "ZSTD_trace_$trace aq_no_trace_$trace"
done >"$work/renamed"
# Bitcode of the standard library is of no use to a linker of C.
"$OBJCOPY" --redefine-syms="$work/renamed" --keep-global-symbols="$work/names" --strip-unneeded \
    --remove-section=.llvmbc --remove-section=.llvmcmd --remove-section=.comment \
    "$work/all.o" "$work/arrowquant.o"
"$AR" rcsD "$work/libarrowquant.a" "$work/arrowquant.o"

soname=$("$READELF" -d "$built/libarrowquant.so" | sed -n 's/.*(SONAME).*\[\(.*\)\].*/\1/p')
[ -n "$soname" ] || fail "$built/libarrowquant.so has no SONAME"

# Programs may run with what is replaced here, so files are made anew.
put() {
    rm -f "$3"
    cp "$2" "$3"
    chmod "$1" "$3"
}

# The way from the libraries' folder up to the prefix.
up=$(echo "$libdir" | sed 's|[^/][^/]*|..|g')
# What programs with the static library link, too. The compiler adds libgcc and libc by itself,
# also with -static, for which there is no libgcc_s.
native='util rt pthread m dl'
# Fills in the template $1, into the folder $2; $3 is the list of these libraries.
fill() {
    sed -e "s|@VERSION@|$version|g" -e "s|@SONAME@|$soname|g" -e "s|@LIBDIR@|$libdir|g" \
        -e "s|@UP@|$up|g" -e "s|@NATIVE@|$3|g" "$home/$1.in" >"$work/$1"
    put 644 "$work/$1" "$2/$1"
}

umask 022
lib=$destdir$prefix/$libdir
mkdir -p "$lib/pkgconfig" "$lib/cmake/ArrowQuant" "$destdir$prefix/include"
put 755 "$built/libarrowquant.so" "$lib/libarrowquant.so.$version"
ln -sf "libarrowquant.so.$version" "$lib/$soname"
ln -sf "$soname" "$lib/libarrowquant.so"
put 644 "$work/libarrowquant.a" "$lib/libarrowquant.a"
for header in include/arrowquant.h include/arrowquant.hpp; do
    [ ! -e "$header" ] || put 644 "$header" "$destdir$prefix/$header"
done
fill arrowquant.pc "$lib/pkgconfig" "$(echo " $native" | sed 's/ / -l/g; s/^ //')"
cmake=$lib/cmake/ArrowQuant
fill ArrowQuantConfig.cmake "$cmake" "$(echo "$native" | tr ' ' ';')"
fill ArrowQuantConfigVersion.cmake "$cmake" ''
echo "ArrowQuant $version is in $destdir$prefix"
