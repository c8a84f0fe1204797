#!/usr/bin/env bash
# What a machine with one GPU has to show, in at most 8 minutes: the tests of tests/gpu, then benchmarks/gpu.py.
#
#     make gpu                                    or, without an environment of its own:
#     PYTHON=python3 OUT=/tmp/out bash benchmarks/gpu.sh
#
# Nothing is downloaded or installed; weights and files are generated. In OUT (default runs/gpu): tests.log, gpu.log,
# gpu.json and speed.md, the tables for docs/speed.md. DEVICE=cpu TINY=1 runs the same without a GPU.
set -u
cd "$(dirname "$0")/.."
out=${OUT:-runs/gpu} python=${PYTHON:-python3} device=${DEVICE:-cuda} tests=${TESTS:-tests/gpu}
mkdir -p "$out"
out=$(cd "$out" && pwd)
export M3BIND_TEST_DEVICE=$device HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=PASSIVE PYTHONUNBUFFERED=1
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
start=$SECONDS

timeout 200 "$python" -m pytest -m gpu $tests -rfEs --durations=10 -p no:cacheprovider >"$out/tests.log" 2>&1
tested=$?
echo "tests: exit code $tested after $((SECONDS - start)) s"
tail -n 25 "$out/tests.log"

left=$((${LIMIT:-470} - SECONDS + start))
timeout "$left" "$python" benchmarks/gpu.py --device "$device" ${TINY:+--tiny} --seconds $((left - 60)) \
  --out "$out/gpu.json" >"$out/gpu.log" 2>&1
measured=$?
grep -v -e Warning -e '^$' "$out/gpu.log" | tail -n 120
"$python" tools/make_speed.py "$out/gpu.json" "$out/speed.md" || measured=1
echo "benchmark: exit code $measured; all after $((SECONDS - start)) s; see $out"
[ "$tested" = 0 ] && [ "$measured" = 0 ]
