# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_peerix_global_optspecs
    string join \n config= port= timeout= private-key= v/verbose check-config print-config h/help V/version
end

function __fish_peerix_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_peerix_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_peerix_using_subcommand
    set -l cmd (__fish_peerix_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c peerix -n "__fish_peerix_needs_command" -l config -d 'Config file, instead of /etc/peerix/peerix.toml if that is there' -r -F
complete -c peerix -n "__fish_peerix_needs_command" -l port -d 'TCP and UDP port, when systemd passes no sockets' -r
complete -c peerix -n "__fish_peerix_needs_command" -l timeout -d 'Wait for peers that run the first peerix, in milliseconds' -r
complete -c peerix -n "__fish_peerix_needs_command" -l private-key -d 'Secret key to sign with, a file of `nix-store --generate-binary-cache-key`' -r -F
complete -c peerix -n "__fish_peerix_needs_command" -s v -l verbose -d 'Also log what is only of use when something is looked for'
complete -c peerix -n "__fish_peerix_needs_command" -l check-config -d 'Check config file, keys, nix.conf and store, and exit'
complete -c peerix -n "__fish_peerix_needs_command" -l print-config -d 'Print the settings in force as TOML, and exit'
complete -c peerix -n "__fish_peerix_needs_command" -s h -l help -d 'Print help'
complete -c peerix -n "__fish_peerix_needs_command" -s V -l version -d 'Print version'
complete -c peerix -n "__fish_peerix_needs_command" -f -a "serve" -d 'Run the daemon; this is also what happens without a command'
complete -c peerix -n "__fish_peerix_needs_command" -f -a "completions" -d 'Print a completion script for a shell'
complete -c peerix -n "__fish_peerix_needs_command" -f -a "refresh" -d 'Let Nix forget which paths the neighbours did not have, so that it asks again'
complete -c peerix -n "__fish_peerix_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c peerix -n "__fish_peerix_using_subcommand serve" -l config -d 'Config file, instead of /etc/peerix/peerix.toml if that is there' -r -F
complete -c peerix -n "__fish_peerix_using_subcommand serve" -l port -d 'TCP and UDP port, when systemd passes no sockets' -r
complete -c peerix -n "__fish_peerix_using_subcommand serve" -l timeout -d 'Wait for peers that run the first peerix, in milliseconds' -r
complete -c peerix -n "__fish_peerix_using_subcommand serve" -l private-key -d 'Secret key to sign with, a file of `nix-store --generate-binary-cache-key`' -r -F
complete -c peerix -n "__fish_peerix_using_subcommand serve" -s v -l verbose -d 'Also log what is only of use when something is looked for'
complete -c peerix -n "__fish_peerix_using_subcommand serve" -l check-config -d 'Check config file, keys, nix.conf and store, and exit'
complete -c peerix -n "__fish_peerix_using_subcommand serve" -l print-config -d 'Print the settings in force as TOML, and exit'
complete -c peerix -n "__fish_peerix_using_subcommand serve" -s h -l help -d 'Print help'
complete -c peerix -n "__fish_peerix_using_subcommand completions" -s h -l help -d 'Print help'
complete -c peerix -n "__fish_peerix_using_subcommand refresh" -l config -d 'Config file, instead of /etc/peerix/peerix.toml if that is there; it names the port' -r -F
complete -c peerix -n "__fish_peerix_using_subcommand refresh" -l port -d 'Port of the gateway that Nix knows, when the config file does not name it' -r
complete -c peerix -n "__fish_peerix_using_subcommand refresh" -s h -l help -d 'Print help'
complete -c peerix -n "__fish_peerix_using_subcommand help; and not __fish_seen_subcommand_from serve completions refresh help" -f -a "serve" -d 'Run the daemon; this is also what happens without a command'
complete -c peerix -n "__fish_peerix_using_subcommand help; and not __fish_seen_subcommand_from serve completions refresh help" -f -a "completions" -d 'Print a completion script for a shell'
complete -c peerix -n "__fish_peerix_using_subcommand help; and not __fish_seen_subcommand_from serve completions refresh help" -f -a "refresh" -d 'Let Nix forget which paths the neighbours did not have, so that it asks again'
complete -c peerix -n "__fish_peerix_using_subcommand help; and not __fish_seen_subcommand_from serve completions refresh help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
