#!/bin/sh
# Fuzzes each target for some time and prints what came of it:
#
#     fuzz/run.sh [SECONDS] [TARGET...]
#
# Needs a nightly toolchain and cargo-fuzz (`cargo install cargo-fuzz`). An input that takes over
# a second, one allocation over 64 MiB, a leak or a panic ends the run of its target; the input
# is then in fuzz/artifacts/TARGET. FUZZ_TARGET_DIR is where to build, fuzz/target if not given.
set -eu
cd "$(dirname "$0")"
seconds=${1:-60}
[ $# -gt 0 ] && shift
build=${FUZZ_TARGET_DIR:-$PWD/target}
targets=${*:-$(cargo +nightly fuzz list)}
host=$(rustc +nightly -vV | sed -n 's/^host: //p')
export TMPDIR="${TMPDIR:-/dev/shm}"
failed=0
printf '%-16s %12s %8s %8s %8s %8s  %s\n' target inputs seconds edges corpus 'RSS MiB' result
for target in $targets; do
    cargo +nightly fuzz build --target-dir "$build" "$target" >"$build.log" 2>&1 || {
        cat "$build.log"
        exit 1
    }
    mkdir -p "corpus/$target" "artifacts/$target"
    log="artifacts/$target.log"
    result=ok
    "$build/$host/release/$target" "corpus/$target" "corpus-seeds/$target" \
        -artifact_prefix="artifacts/$target/" -max_total_time="$seconds" -max_len=1048576 \
        -timeout=1 -malloc_limit_mb=64 -rss_limit_mb=2048 -detect_leaks=1 -print_final_stats=1 \
        -use_value_profile=1 >"$log" 2>&1 || result=FAILED
    [ "$result" = ok ] || failed=1
    last() { grep -o "$1[: ]*[0-9]*" "$log" | tail -1 | grep -o '[0-9]*$' || echo '?'; }
    ran=$(sed -n 's/^Done .* in \([0-9]*\) second.*/\1/p' "$log")
    printf '%-16s %12s %8s %8s %8s %8s  %s\n' "$target" \
        "$(last stat::number_of_executed_units)" "${ran:-?}" "$(last cov)" "$(last corp)" \
        "$(last stat::peak_rss_mb)" "$result"
done
exit $failed
