#!/bin/sh
# Builds the decoder for firmware (no standard library, no allocator) as a static library, and
# prints how much code a program that calls it gets.
#
#   bindings/c/firmware.sh [TARGET]...     such as thumbv7em-none-eabihf (the default)
#
# Needs the target (rustup target add TARGET) and rustup's llvm-tools (rustup component add
# llvm-tools). C code includes arrowquant.h with AQ_NO_STD defined.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"
[ $# -gt 0 ] || set -- thumbv7em-none-eabihf

host=$(rustc -vV | sed -n 's/^host: //p')
tools=$(rustc --print sysroot)/lib/rustlib/$host/bin
[ -x "$tools/llvm-size" ] || {
    echo "llvm-size is missing: rustup component add llvm-tools" >&2
    exit 1
}
linked=$(mktemp)
trap 'rm -f "$linked"' EXIT

for target; do
    cargo rustc -p arrowquant --lib --no-default-features --features firmware --crate-type staticlib \
        --profile firmware --target "$target"
    library=${CARGO_TARGET_DIR:-target}/$target/firmware/libarrowquant.a
    echo "$library"
    for functions in aq_matvec aq_dequantize_rows "aq_matvec aq_dequantize_rows"; do
        # shellcheck disable=SC2046,SC2086 # a flag a function
        "$tools/gcc-ld/ld.lld" --gc-sections -e "${functions##* }" \
            $(printf -- '-u %s ' $functions) "$library" -o "$linked"
        "$tools/llvm-size" "$linked" |
            awk -v functions="$functions" 'NR == 2 { printf "%8d bytes  %s\n", $1 + $2, functions }'
    done
done
