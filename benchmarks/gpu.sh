#!/usr/bin/env bash
# What a machine with one GPU has to show, in at most 8 minutes: the tests of tests/gpu, then benchmarks/gpu.py.
#
#     make gpu                                    or, without an environment of its own:
#     PYTHON=python3 OUT=/tmp/out bash benchmarks/gpu.sh
#
# Nothing is downloaded or installed; weights and files are generated. In OUT (default runs/gpu): tests.log, gpu.log,
# gpu.json and speed.md, the tables for docs/speed.md. DEVICE=cpu TINY=1 runs the same lines without a GPU, but for the
# published models in full size, which tests/models/test_models_on_a_device.py has with fewer layers. LIMIT: seconds.
set -u
cd "$(dirname "$0")/.."
out=${OUT:-runs/gpu} python=${PYTHON:-python3} device=${DEVICE:-cuda} tests=${TESTS:-tests/gpu}
chosen=${TINY:+not test_gpu_models or compact_1d or compact_2d or ecg_clip or clip_any}
limit=${LIMIT:-${TINY:+1200}}
limit=${limit:-470}
mkdir -p "$out"
out=$(cd "$out" && pwd)
export M3BIND_TEST_DEVICE=$device HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=PASSIVE PYTHONUNBUFFERED=1
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
start=$SECONDS

timeout $((limit * 3 / 7)) "$python" -m pytest -m gpu -k "$chosen" $tests -rfEs --durations=10 -p no:cacheprovider >"$out/tests.log" 2>&1
tested=$?
echo "tests: exit code $tested after $((SECONDS - start)) s"
tail -n 25 "$out/tests.log"

left=$((limit - SECONDS + start))
timeout "$left" "$python" benchmarks/gpu.py --device "$device" ${TINY:+--tiny} --seconds $((left - 60)) \
  --out "$out/gpu.json" >"$out/gpu.log" 2>&1
measured=$?
grep -v -e Warning -e '^$' "$out/gpu.log" | tail -n 120
"$python" tools/make_speed.py "$out/gpu.json" "$out/speed.md" || measured=1
echo "benchmark: exit code $measured; all after $((SECONDS - start)) s; see $out"
[ "$tested" = 0 ] && [ "$measured" = 0 ]
