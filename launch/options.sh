# shellcheck shell=bash disable=SC2034 # what is set here is read there
# Sourced by the scripts that start jobs: options of the form --name=value, and --dry_run.
# A script gives each option its default as a variable of that name, and says in OPTIONS which they are.

dry_run=no
command=() # what stands behind --: the arguments of crystal-jax

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 2
}

# The comment at the head of the script that was called.
explain() {
    sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "$0"
    exit 0
}

# Sets the variables named in OPTIONS, and `command`.
read_options() {
    local argument option # no option may have one of these names
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

# Runs a command, or under --dry_run prints it as it could be typed.
run() {
    if [ "$dry_run" = yes ]; then
        printf '%q ' "$@"
        printf '\n'
    else
        "$@"
    fi
}

# The arguments as one line that a shell reads back as they are.
quoted() {
    local line
    line="$(printf '%q ' "$@")"
    printf '%s' "${line% }"
}

# The actions of a SLURM job, whose script the function `job` prints.
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
