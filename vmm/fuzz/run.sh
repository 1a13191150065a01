#!/bin/sh
# Runs one fuzz target: ./run.sh TARGET SECONDS
set -eu
cd "$(dirname "$0")"
target=$1 seconds=${2:-60}
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Zsanitizer=address -Ccodegen-units=1 --cfg fuzzing"
host=$(rustc +nightly -vV | sed -n 's/^host: //p')
cargo +nightly build --release --target "$host" --bin "$target"
mkdir -p "corpus/$target" "artifacts/$target"
directory=${CARGO_TARGET_DIR:-target}
exec "$directory/$host/release/$target" "corpus/$target" \
    -artifact_prefix="artifacts/$target/" -max_total_time="$seconds" -max_len=2048
