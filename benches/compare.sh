#!/usr/bin/env bash
# What a request costs forebay, beside nginx and HAProxy that check a key too.
#
#   benches/compare.sh                 CPU µs a request, latency and memory, all three side by side (about 3 minutes)
#   benches/compare.sh stream          CPU µs an event of 100 streams, and memory, side by side (about 3 minutes)
#   benches/compare.sh cache           CPU µs of an answer that is kept and of one that is not yet, beside nginx's proxy_cache
#   benches/compare.sh instructions    instructions a request, an event, a kept answer and one that is not yet, under valgrind,
#                                      and where forebay's go
#
# FOREBAY=FILE measures another binary; ROUNDS (7) and SECONDS_EACH (3) make it longer, REQUESTS (2000) the valgrind runs.
# PACE (50; under valgrind 10) is the events a second of each stream.
# The proxy has core 0 for itself; load and engine share core 1.
set -euo pipefail
here=$(realpath "$(dirname "${BASH_SOURCE[0]}")")
mode=${1:-time}
[[ $mode =~ ^(time|stream|cache|instructions)$ ]] || { sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2; }

FOREBAY=${FOREBAY:-${CARGO_TARGET_DIR:-$here/../target}/release/forebay}
ROUNDS=${ROUNDS:-7} SECONDS_EACH=${SECONDS_EACH:-3} REQUESTS=${REQUESTS:-2000}
# Under valgrind events that come faster than they are passed on would be gathered.
[[ $mode == instructions ]] && PACE=${PACE:-10} || PACE=${PACE:-50}
PROXY_CORE=0 LOAD_CORE=1
KEY=sk-$(head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n')
export KEY PACE

need() {
    local missing=()
    command -v nginx >/dev/null || missing+=(nginx-light)
    command -v haproxy >/dev/null || missing+=(haproxy)
    command -v curl >/dev/null || missing+=(curl)
    command -v python3 >/dev/null || missing+=(python3-minimal)
    [[ $mode != time && $mode != cache ]] || command -v wrk >/dev/null || missing+=(wrk)
    [[ $mode != instructions ]] || command -v valgrind >/dev/null || missing+=(valgrind)
    if ((${#missing[@]} > 0)); then
        if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
            echo "missing; install the packages: ${missing[*]}" >&2
            exit 1
        fi
        # Their services must not start: only what is measured may run.
        mkdir -p "$dir/no-services"
        printf '#!/bin/sh\nexit 0\n' | tee "$dir/no-services/"{systemctl,invoke-rc.d,service} >/dev/null
        chmod +x "$dir/no-services/"*
        apt-get update -qq
        PATH="$dir/no-services:$PATH" DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends "${missing[@]}" >"$dir/apt.log" ||
            { cat "$dir/apt.log" >&2; exit 1; }
    fi
    (($(nproc) >= 2)) || { echo "two cores are needed: one for the proxy, one for the load" >&2; exit 1; }
    if [[ ! -x $FOREBAY ]]; then
        echo "no $FOREBAY: cargo build --release makes it" >&2
        [[ $mode == time ]] || exit 1 # its stand-in engine is the source of the streams
        echo "its peers are measured without it" >&2
    fi
}

# === processes ===

pids=()

# Asks all that was started here to end, and makes it end.
stop_all() {
    local pid
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do
        for _ in {1..100}; do
            kill -0 "$pid" 2>/dev/null || continue 2
            sleep 0.05
        done
        kill -9 "$pid" 2>/dev/null || true
    done
    pids=()
}

dir=$(mktemp -d)
# nginx's worker may be another user.
chmod 755 "$dir"
trap 'stop_all; rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# fill TEMPLATE FILE NAME=VALUE…: a configuration with its @NAME@s filled in.
fill() {
    local template=$1 file=$2 word edits=()
    shift 2
    for word in "DIR=$dir" "KEY=$KEY" "BACKEND=$BACKEND" "$@"; do edits+=(-e "s|@${word%%=*}@|${word#*=}|g"); done
    sed "${edits[@]}" "$here/compare/$template" >"$file"
}

# start NAME CORE COMMAND…: runs it on that core, what it says in NAME.log; the PID is in $started.
start() {
    local name=$1 core=$2
    shift 2
    taskset -c "$core" "$@" </dev/null >"$dir/$name.log" 2>&1 &
    started=$!
    pids+=("$started")
}

# status PORT KEY: what a prompt with that key is answered with; 000 without an answer.
status() {
    curl -q -s -o /dev/null -w '%{http_code}' --noproxy '*' --max-time 20 "http://127.0.0.1:$1/v1/chat/completions" \
        -H "Authorization: Bearer $2" -H 'Content-Type: application/json' -d '{"model":"demo","messages":[{"role":"user","content":"?"}]}' || true
}

# serves NAME PORT: waits until the right key is let through, and makes sure that a wrong one is not.
serves() {
    for _ in {1..300}; do
        if [[ $(status "$2" "$KEY") == 200 ]]; then
            [[ $(status "$2" wrong) == 401 ]] && return
            echo "$1 lets a wrong key through" >&2
            exit 1
        fi
        kill -0 "$started" 2>/dev/null || break
        sleep 0.1
    done
    echo "$1 does not answer:" >&2
    tail -20 "$dir/$1.log" >&2
    exit 1
}

start_backend() {
    BACKEND=$(free_port)
    fill backend.conf "$dir/backend.conf"
    start backend "$LOAD_CORE" nginx -p "$dir" -c "$dir/backend.conf" -e stderr
}

# An engine whose streams are paced, in the backend's place.
start_engine() {
    BACKEND=$(free_port)
    start engine "$LOAD_CORE" "$FOREBAY" engine --listen "127.0.0.1:$BACKEND" --tokens-per-second "$PACE"
}

# Whether nginx may gather a response before it passes it on.
buffering=on
# Whether there is a cache: forebay's is for a model of its own, nginx's for all.
cache=off

# proxy NAME LOG [WRAPPER…]: starts a proxy, with or without an access log ("log" or "off"), perhaps under a wrapper;
# its PID and port are in $started and $port.
proxy() {
    local name=$1 log=$2 file="$dir/$1-$2.conf" title=$1-$2 kept="" path=""
    shift 2
    port=$(free_port)
    if [[ $cache-$name == on-forebay ]]; then
        kept='[model.kept]\npool = "engines"\n[model.kept.cache]'
    elif [[ $cache-$name == on-nginx ]]; then
        mkdir -p "$dir/kept"
        chmod 777 "$dir/kept"
        path="proxy_cache_path $dir/kept levels=1:2 keys_zone=kept:32m max_size=256m use_temp_path=off;"
        kept='proxy_cache kept; proxy_cache_methods POST; proxy_cache_valid 200 1h; proxy_cache_key "$request_uri $http_authorization $request_body";'
    fi
    case $name-$log in
    forebay-*)
        fill forebay.toml "$file" "PORT=$port" "ADMIN=$(free_port)" "LOG=${log/#log/$dir/forebay.access}" "KEPT=$kept" \
            "SHA256=$(printf %s "$KEY" | sha256sum | cut -d' ' -f1)"
        start "$title" "$PROXY_CORE" "$@" "$FOREBAY" run -c "$file"
        ;;
    nginx-*)
        [[ $log == off ]] || log="$dir/access.log json"
        fill nginx.conf "$file" "NAME=$title" "PORT=$port" "LOG=$log" "BUFFERING=$buffering" "PATH=$path" "KEPT=$kept"
        # Under valgrind one process, so that there is one count.
        start "$title" "$PROXY_CORE" "$@" nginx -p "$dir" -c "$file" -e stderr ${1:+-g "master_process off;"}
        ;;
    haproxy-*)
        if [[ $log == off ]]; then log="no log"; else log="log global\n    option httplog"; fi
        fill haproxy.cfg "$file" "PORT=$port" "LOG=$log"
        start "$title" "$PROXY_CORE" "$@" haproxy -db -q -f "$file"
        ;;
    esac
    serves "$title" "$port"
}

# === the three measurements ===

proxies() {
    [[ ! -x $FOREBAY ]] || echo forebay
    echo nginx
    echo haproxy
}

# measure LOG…: all proxies in turn, under each of these settings of their log.
measure() {
    local name log words=()
    for log in "$@"; do
        for name in $(proxies); do
            proxy "$name" "$log"
            words+=("${name}$([[ $log == off ]] || echo ', log')=$started=$port")
        done
    done
    python3 "$here/compare/measure.py" "$mode" "$ROUNDS" "$SECONDS_EACH" "$LOAD_CORE" "${words[@]}"
}

compare_time() {
    start_backend
    measure off log
}

compare_cache() {
    local name load words=()
    start_backend
    cache=on
    for name in forebay nginx; do
        proxy "$name" off
        for load in plain miss hit; do
            [[ $name == nginx && $load != hit ]] || words+=("$name, $load=$started=$port")
        done
    done
    python3 "$here/compare/measure.py" cache "$ROUNDS" "$SECONDS_EACH" "$LOAD_CORE" "${words[@]}"
}

compare_stream() {
    start_engine
    buffering=off
    measure off
}

# counted NAME LOAD NUMBER FILE: a run under callgrind with so many requests, events, answers that are not kept or kept.
counted() {
    proxy "$1" off valgrind --tool=callgrind --callgrind-out-file="$4"
    local program=$2 kind=plain
    [[ $2 != miss && $2 != hit ]] || program=requests kind=$2
    taskset -c "$LOAD_CORE" python3 "$here/compare/$program.py" "$port" "$3" "$kind"
    kill "$started"
    wait "$started" || true
    unset 'pids[-1]'
    [[ -s $4 ]] || { echo "callgrind wrote nothing:" >&2; cat "$dir/$1-off.log" >&2; exit 1; }
}

# count_each LOAD WHAT [NAME…]: what one more request or event takes.
count_each() {
    local name load=$1 what=$2
    shift 2
    for name in ${@:-$(proxies)}; do
        counted "$name" "$load" "$REQUESTS" "$dir/$name.once"
        counted "$name" "$load" "$((2 * REQUESTS))" "$dir/$name.twice"
        printf '%s: ' "$name"
        python3 "$here/compare/instructions.py" "$REQUESTS" "$what" "$dir/$name.once" "$dir/$name.twice" \
            "$([[ $name != forebay ]] || echo top)"
    done
}

compare_instructions() {
    start_backend
    count_each requests request
    cache=on
    count_each miss miss forebay
    count_each hit hit forebay nginx
    cache=off
    start_engine
    buffering=off
    count_each streams event
}

need
"compare_$mode"
