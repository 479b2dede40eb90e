#!/bin/bash
# down.sh DIR [--wipe]: stops what up.sh started in DIR, and all jobs that run there; --wipe deletes DIR, too.
set -uo pipefail

place=${1:?usage: down.sh DIR [--wipe]}
[ -f "$place/etc/slurm.conf" ] || exit 0
place=$(cd "$place" && pwd -P)

# is PID NAME: whether that process exists, has this name, and is no zombie (not every init reaps at once).
is() { [[ "$(ps -o stat=,comm= -p "$1" 2>/dev/null)" =~ ^[^ZX].*\ $2$ ]]; }

# stop NAME PIDFILE...: SIGTERM, then after 8 seconds SIGKILL. A number that has gone to another program stays.
stop() {
    local name=$1 file pid pids=()
    shift
    for file; do
        pid=$(cat "$file" 2>/dev/null) && [ -n "$pid" ] && is "$pid" "$name" && pids+=("$pid")
    done
    [ ${#pids[@]} -gt 0 ] || return 0
    kill -TERM "${pids[@]}" 2>/dev/null
    for _ in $(seq 1 80); do
        local left=
        for pid in "${pids[@]}"; do is "$pid" "$name" && left=1; done
        [ -n "$left" ] || return 0
        sleep 0.1
    done
    kill -KILL "${pids[@]}" 2>/dev/null
}

# What jobs started outlives its slurmd. It is known by the configuration in its environment, which nothing
# outside of this Slurm has together with a job's number.
kill_jobs() {
    local file pid
    for file in /proc/[0-9]*/environ; do
        pid=${file//[^0-9]/}
        if is "$pid" slurmstepd || tr '\0' '\n' <"$file" | grep -q '^SLURM_JOB_ID='; then
            tr '\0' '\n' <"$file" | grep -qxF "SLURM_CONF=$place/etc/slurm.conf" && kill -KILL "$pid"
        fi
    done 2>/dev/null
    return 0
}

stop slurmctld "$place/pid/slurmctld.pid"
stop slurmd "$place"/pid/slurmd-*.pid
kill_jobs
stop munged "$place/pid/munged.pid"
if [ -e "$place/etc/cgroup.conf" ]; then
    find /sys/fs/cgroup -depth -path '*/slurm_node*' -type d -exec rmdir {} + 2>/dev/null
fi
rm -f "$place"/pid/*.pid
[ "${2:-}" = --wipe ] && rm -rf -- "$place"
exit 0
