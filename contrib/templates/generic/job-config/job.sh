#!/bin/bash
# Runs the runner for one job. Sourced by forrest-job, as root and in a subshell, once the job is known, from
# this disk, which is mounted at /home/runner/config. File descriptor 3 leads to the host.
#
# The job itself decides whether the disk is kept: it writes the persistence token to
# /home/runner/config/persist.

runner_name='<RUNNER_NAME>'
config=/home/runner/config
runner=/home/runner/actions-runner

# The clone of a snapshot has the same name as all others until it gets one of its own.
set_hostname() {
    local name=${runner_name:0:63} lines
    printf '%s' "$name" >/proc/sys/kernel/hostname
    # sudo looks its host up; keep every other line, drop those of earlier runs.
    mapfile -t lines </etc/hosts
    for line in "${!lines[@]}"; do
        [[ ${lines[line]} != *'# forrest' ]] || unset "lines[line]"
    done
    printf '%s\n' "${lines[@]}" "127.0.1.1 $name # forrest" >/etc/hosts
}

run() {
    local jit_config=
    read -r jit_config <"$config/jitconfig"
    case $jit_config in
    '' | '<'*)
        printf 'error the job configuration has no JIT config for the runner\n' >&3
        exit 1
        ;;
    esac
    # The runner has it from here on; nobody has to find it on this disk.
    : >"$config/jitconfig"
    [[ $runner_name == '<'* ]] || set_hostname
    export HOME=/home/runner USER=runner LOGNAME=runner SHELL=/bin/bash LANG=C.UTF-8
    export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    # Not on the command line, where every process of the guest could read it.
    export ACTIONS_RUNNER_INPUT_JITCONFIG=$jit_config
    cd "$runner" || exit 1
    printf 'runner-started\n' >&3
    exec setpriv --reuid runner --regid runner --init-groups -- ./run.sh 3>&-
}

run
