# shellcheck shell=bash disable=SC2034 # variables set here are read by the scripts that source this file
# Sourced by the scripts that start jobs: parses options of the form --name=value, and --dry_run.
# A script sets the default of each option as a variable of the same name, and lists the options in OPTIONS.

dry_run=no
command=() # the arguments after --: those of crystal-jax

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 2
}

# Prints the comment at the head of the called script.
explain() {
    sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "$0"
    exit 0
}

# Sets the variables named in OPTIONS, and `command`, from the arguments.
read_options() {
    local argument option # options must not have these names
    while [ $# -gt 0 ]; do
        argument="$1"
        shift
        case "$argument" in
            -h | --help) explain ;;
            --dry_run) dry_run=yes ;;
            --)
                command=("$@")
                break
                ;;
            --*=*)
                option="${argument%%=*}"
                option="${option#--}"
                case " $OPTIONS " in
                    *" $option "*) printf -v "$option" '%s' "${argument#*=}" ;;
                    *) fail "no option --$option; there are: $OPTIONS" ;;
                esac
                ;;
            *) fail "unexpected argument $argument; options are --name=value, and the command stands behind --" ;;
        esac
    done
}

# Ends the script unless each of these options has a value.
need() {
    local option
    for option in "$@"; do
        [ -n "${!option}" ] || fail "--$option=… is missing (--help explains it)"
    done
}

need_command() {
    [ ${#command[@]} -gt 0 ] || fail "no command; it stands behind --, such as: -- train --config=configs/smoke.py"
}

# Runs a command; with --dry_run prints it, quoted for a shell.
run() {
    if [ "$dry_run" = yes ]; then
        printf '%q ' "$@"
        printf '\n'
    else
        "$@"
    fi
}

# Prints the arguments as one line, quoted for a shell.
quoted() {
    local line
    line="$(printf '%q ' "$@")"
    printf '%s' "${line% }"
}

# Performs the action of a SLURM job; the function `job` prints its script.
slurm_actions() {
    # shellcheck disable=SC2154
    case "$action" in
        run)
            need name
            need_command
            if [ "$dry_run" = yes ]; then
                echo "sbatch << END"
                job
                echo "END"
            else
                job | sbatch
            fi
            ;;
        status) run squeue --me ;;
        cancel)
            need name
            run scancel "--name=$name"
            ;;
        *) fail "no --action=$action; there are: run, status, cancel" ;;
    esac
}
