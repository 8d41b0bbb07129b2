#!/bin/bash
# A stand-in for GitHub's own Actions runner, for the simulator "github-sim" and nothing else.
#
# It is NOT GitHub's runner: it speaks the simulator's own protocol, knows no actions (`uses:`), and
# is here because the real one works with the real GitHub only. What it shares with the real one is
# how it is started, what it does for a job that consists of scripts, and how it ends:
#
#   run.sh --jitconfig CONFIG      or the configuration in ACTIONS_RUNNER_INPUT_JITCONFIG
#
# It connects, waits for a job, runs that one job's steps, reports, and exits with 0.
#
# Every program that it starts costs a virtual machine under emulation some 20 to 50 ms. So it starts
# none before the first step of a job does: the configuration is decoded and the connection is made
# by bash itself (/dev/tcp), and the steps print straight into that connection. Steps that open
# /dev/stdout or /dev/stderr by name ("tee /dev/stderr") find that these are sockets and fail; with
# GitHub's runner they are pipes.

sim_version=@VERSION@
sim_root=${BASH_SOURCE[0]%/*}
[[ $sim_root == "${BASH_SOURCE[0]}" ]] && sim_root=.
cd "$sim_root" || exit 1
sim_root=$PWD

# The configuration is a secret: no step may find it in its environment.
sim_config=${ACTIONS_RUNNER_INPUT_JITCONFIG-}
unset ACTIONS_RUNNER_INPUT_JITCONFIG
while (($#)); do
  case $1 in
    --jitconfig) sim_config=${2-}; shift ;;
    --jitconfig=*) sim_config=${1#*=} ;;
    --version) echo "$sim_version"; exit 0 ;;
    *) echo "run.sh (stand-in): unknown option $1" >&2; exit 1 ;;
  esac
  shift
done
if [[ -z $sim_config ]]; then
  echo "run.sh (stand-in): give a configuration with --jitconfig" >&2
  exit 1
fi

# The configuration begins with the simulator's address, which has to be found without decoding anything: a loop
# that does takes a guest that was just restored from a snapshot some 20 ms. Who this runner is says the whole.
if [[ $sim_config != [1-9]*/*/* ]]; then
  echo "run.sh (stand-in): this configuration is not of the simulator" >&2
  exit 1
fi
sim_port=${sim_config%%/*}
sim_host=${sim_config#*/}
sim_host=${sim_host%%/*}
sim_host=${sim_host//+/.}
sim_server=$sim_host:$sim_port

# Connects; 1: try again, 2: there is no such runner (any more).
sim_connect() {
  local line status
  { exec {sim_io}<>"/dev/tcp/$sim_host/$sim_port"; } 2>/dev/null || return 1
  printf 'GET /_sim/runner/v1/session HTTP/1.1\r\nHost: %s\r\nUser-Agent: actions-runner-stand-in/%s\r\nAuthorization: Bearer %s\r\nConnection: Upgrade\r\nUpgrade: sim-runner\r\n\r\n' \
    "$sim_server" "$sim_version" "$sim_config" >&"$sim_io"
  IFS= read -r -u "$sim_io" line
  status=${line#* } status=${status%% *}
  while IFS= read -r -u "$sim_io" line && [[ $line != $'\r' ]]; do :; done
  [[ $status == 101 ]] && return 0
  sim_hang_up
  [[ $status == 40[14] ]] && return 2
  return 1
}

sim_say() {
  TZ=UTC0 printf '%(%Y-%m-%d %H:%M:%SZ)T: %s\n' -1 "$1"
}

sim_hang_up() {
  exec {sim_io}>&-
}

# Tells the simulator something; it tells this from what steps print by a word of the job's own.
sim_tell() {
  printf '\036%s %s\n' "$sim_nonce" "$1" >&"$sim_io"
}

# Takes over what a step wrote to its $GITHUB_ENV and $GITHUB_PATH.
sim_take_over() {
  local line name end value
  while IFS= read -r line || [[ $line ]]; do
    if [[ $line == *'<<'* && ${line%%'<<'*} != *=* ]]; then
      name=${line%%'<<'*} end=${line#*'<<'} value=
      while IFS= read -r line && [[ $line != "$end" ]]; do value+=${value:+$'\n'}$line; done
      export "$name=$value"
    elif [[ $line == *=* ]]; then
      export "$line"
    fi
  done <"$GITHUB_ENV" 2>/dev/null
  while IFS= read -r line; do PATH=$line:$PATH; done <"$GITHUB_PATH"
  : >"$GITHUB_ENV" >"$GITHUB_PATH"
}

sim_stop_step() {
  sim_cancelled=1
  [[ $sim_step ]] || return
  kill -TERM -- "-$sim_step" 2>/dev/null
  { sleep 5; kill -KILL -- "-$sim_step"; } >/dev/null 2>&1 &
  sim_killer=$!
}

# Runs the job whose description, a bash script of $1 bytes of ASCII, comes next.
sim_run_job() {
  local sim_program sim_i sim_first sim_code sim_how sim_result=success sim_watcher=
  sim_step= sim_cancelled= sim_killer=
  local -a sim_scripts sim_always
  IFS= read -r -N "$1" -u "$sim_io" sim_program || return 1
  eval "$sim_program"
  echo "Running job: $sim_job"

  export RUNNER_TEMP=$sim_root/_work/_temp GITHUB_WORKSPACE=$sim_root/_work/workspace
  export RUNNER_WORKSPACE=$sim_root/_work RUNNER_ARCH=$HOSTTYPE RUNNER_ENVIRONMENT=self-hosted
  export GITHUB_ENV=$RUNNER_TEMP/env GITHUB_PATH=$RUNNER_TEMP/path
  export GITHUB_OUTPUT=$RUNNER_TEMP/output GITHUB_STEP_SUMMARY=$RUNNER_TEMP/summary
  [[ -d $RUNNER_TEMP && -d $GITHUB_WORKSPACE ]] || mkdir -p "$RUNNER_TEMP" "$GITHUB_WORKSPACE"
  # They came with this file, and empty: making one takes a guest longer than a look.
  for sim_i in "$GITHUB_ENV" "$GITHUB_PATH" "$GITHUB_OUTPUT" "$GITHUB_STEP_SUMMARY"; do
    [[ -f $sim_i && ! -s $sim_i ]] || : >"$sim_i"
  done

  trap sim_stop_step USR1
  # Ignoring it would make the steps ignore it too.
  trap : PIPE
  # Each step gets a process group, so that it can be stopped as a whole.
  set -m
  # Said together with what comes next: each writing of its own may wait for an acknowledgement.
  sim_first=picked-up$'\n'$'\036'"$sim_nonce "
  ((${#sim_scripts[@]})) || sim_tell picked-up
  for ((sim_i = 0; sim_i < ${#sim_scripts[@]}; sim_i++)); do
    [[ ${sim_always[sim_i]} == 1 || $sim_result == success ]] || continue
    sim_tell "${sim_first}step $sim_i begins"
    sim_first=
    (
      set +m
      trap - USR1 PIPE
      cd "$GITHUB_WORKSPACE" || exit 1
      set -e
      eval "${sim_scripts[sim_i]}"
    ) >&"$sim_io" 2>&1 </dev/null {sim_io}>&- &
    sim_step=$!
    if [[ -z $sim_watcher ]]; then
      {
        # Hears of a cancellation; lets go of the connection when the runner itself is killed.
        trap - USR1
        while kill -0 $$ 2>/dev/null; do
          IFS= read -r -t 2 -u "$sim_io" sim_word
          case $? in
            0) [[ $sim_word == cancel ]] && kill -USR1 $$; break ;;
            1) break ;;
          esac
        done
      } &
      sim_watcher=$!
    fi
    while :; do
      wait "$sim_step" 2>/dev/null
      sim_code=$?
      # A signal ends the waiting but not the step.
      ((sim_code > 128)) && kill -0 "$sim_step" 2>/dev/null || break
    done
    sim_step=
    if [[ $sim_killer ]]; then
      kill -- "-$sim_killer" 2>/dev/null
      wait "$sim_killer" 2>/dev/null
      sim_killer=
    fi
    sim_how=success
    ((sim_code)) && sim_how=failure
    [[ $sim_cancelled ]] && sim_how=cancelled
    [[ $sim_how == success || $sim_result != success ]] || sim_result=$sim_how
    sim_tell "step $sim_i ends $sim_how $sim_code"
    [[ -s $GITHUB_ENV || -s $GITHUB_PATH ]] && sim_take_over
  done

  if [[ $sim_watcher ]]; then
    kill "$sim_watcher" 2>/dev/null
    wait "$sim_watcher" 2>/dev/null
  fi
  sim_tell "done $sim_result"
  while IFS= read -r -t 30 -u "$sim_io" sim_word && [[ $sim_word != bye ]]; do :; done
  case $sim_result in
    success) sim_result=Succeeded ;;
    failure) sim_result=Failed ;;
    cancelled) sim_result=Canceled ;;
  esac
  sim_say "Job $sim_job completed with result: $sim_result"
}

sim_pause=1
while :; do
  sim_connect
  case $? in
    0)
      sim_pause=1
      # Without the time, which would have to be converted; whoever reads this knows it.
      printf "\n√ Connected to the GitHub simulator (this is a stand-in for the Actions runner)\n\n%s\n%s\n" \
        "Current runner version: '$sim_version'" 'Listening for Jobs'
      if IFS=' ' read -r -u "$sim_io" sim_word sim_rest; then
        case $sim_word in
          job)
            # Not "sim_run_job … && exit": behind that, "set -e" would be without effect in the steps.
            sim_run_job "$sim_rest"
            (($? == 0)) && exit 0
            ;;
          leave) echo "This runner's registration was removed."; exit 1 ;;
        esac
      fi
      sim_hang_up
      sim_say 'Runner connect error: the connection was lost. Retrying until reconnected.'
      ;;
    2)
      echo "This runner's registration was removed, or never was there."
      exit 1
      ;;
    *)
      sim_say "Runner connect error: no connection to $sim_server. Retrying until reconnected."
      ;;
  esac
  sleep "$sim_pause"
  ((sim_pause = sim_pause < 16 ? sim_pause * 2 : 30))
done
