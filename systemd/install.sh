#!/bin/sh
# Install peerix on a machine with systemd, or take it away again. `--help` tells how.
set -eu
umask 022

usage() {
    cat <<'END'
usage: systemd/install.sh [--prefix DIR] [--binary FILE] [--uninstall]

Install peerix from this source or release archive, and start its socket. Run again, it upgrades
what is there without losing a request.

  --prefix DIR    where it goes; default /usr/local. systemd has to read DIR/lib/systemd/system
  --binary FILE   the program; default target/release/peerix of this directory, which
                  `cargo build --release` makes (sudo does not pass on CARGO_TARGET_DIR)
  --uninstall     remove what an installation under the same prefix put there; settings and keys stay
  --help          this

environment:
  DESTDIR           for packagers: install below this directory, and leave the running system alone
  CARGO_TARGET_DIR  where cargo built, if not in target

exit codes: 0 done; 1 a command failed; 64 wrong arguments; 66 a file is missing; 69 this machine
cannot run peerix so; 77 not root
END
}

# say LINE...
say() { printf '%s\n' "$@"; }

# fail CODE TEXT...: what is wrong, where, and what would be right.
fail() {
    code=$1
    shift
    printf 'install.sh: %s\n' "$@" >&2
    exit "$code"
}

top=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
prefix=/usr/local
binary=${CARGO_TARGET_DIR:-$top/target}/release/peerix
destdir=${DESTDIR:-}
action=install

while [ $# -gt 0 ]; do
    case $1 in
    --prefix | --binary)
        [ $# -ge 2 ] || fail 64 "$1 lacks its value; see --help"
        if [ "$1" = --prefix ]; then prefix=$2; else binary=$2; fi
        shift
        ;;
    --prefix=*) prefix=${1#*=} ;;
    --binary=*) binary=${1#*=} ;;
    --uninstall) action=uninstall ;;
    -h | --help)
        usage
        exit 0
        ;;
    *) fail 64 "unknown argument $1; right are --prefix DIR, --binary FILE, --uninstall and --help" ;;
    esac
    shift
done

while [ "$prefix" != "${prefix%/}" ]; do prefix=${prefix%/}; done
while [ "$destdir" != "${destdir%/}" ]; do destdir=${destdir%/}; done
# It becomes part of a unit, where blanks, quotes, % and $ have a meaning of their own.
case $prefix in
*[!A-Za-z0-9/._+-]* | */../* | */.. | */./* | */. | *//*) fail 64 "--prefix $prefix: right is a plain absolute path of letters, digits and . _ + -" ;;
/?*) ;;
*) fail 64 "--prefix '$prefix': right is an absolute path below /, such as /usr/local" ;;
esac

units=$prefix/lib/systemd/system
# What was installed, one path a line: `f` a file, `d` a directory that was not there before.
record=$prefix/share/peerix/installed

# Which file of the source goes where. Read by `source_of`.
files="systemd/peerix.socket $units/peerix.socket
systemd/peerix.service $units/peerix.service
systemd/peerix-refresh.path $units/peerix-refresh.path
systemd/peerix-refresh.service $units/peerix-refresh.service
docs/man/peerix.8 $prefix/share/man/man8/peerix.8
docs/man/peerix.toml.5 $prefix/share/man/man5/peerix.toml.5
docs/completions/peerix.bash $prefix/share/bash-completion/completions/peerix
docs/completions/_peerix $prefix/share/zsh/site-functions/_peerix
docs/completions/peerix.fish $prefix/share/fish/vendor_completions.d/peerix.fish
systemd/peerix.toml $prefix/share/doc/peerix/peerix.toml
systemd/dns-sd/peerix.service $prefix/share/doc/peerix/dns-sd/peerix.service
systemd/dns-sd/peerix.dnssd $prefix/share/doc/peerix/dns-sd/peerix.dnssd"

# Whether this is the running system, not a packager's directory.
live() { [ -z "${DESTDIR:-}" ]; }

shown() { systemctl show --property="$1" --value "$2" 2>/dev/null; }

masked() { [ "$(shown LoadState "$1")" = masked ]; }

# Whether systemd can be asked, and we may change it.
check_rights() {
    [ "$(id -u)" -eq 0 ] ||
        fail 77 "only root may change what is installed in $prefix; run it with sudo, or set DESTDIR to a directory of yours"
    [ ! -e /etc/NIXOS ] ||
        fail 69 "this is NixOS, which manages its units itself; right is the module, nixos/module.nix"
    if [ ! -d /run/systemd/system ] || ! command -v systemctl >/dev/null; then
        fail 69 "systemd does not run this machine (there is no /run/systemd/system), and peerix is started by its sockets"
    fi
}

# Whether the units would work here.
check_systemd() {
    version=$(systemctl --version | sed -n '1s/^systemd \([0-9][0-9]*\).*/\1/p')
    [ -n "$version" ] || fail 69 "systemctl --version does not say which systemd this is; right is 254 or newer"
    if [ "$version" -lt 254 ]; then
        if [ "$version" -ge 252 ] && grep -qsx 'Type=notify' /etc/systemd/system/peerix.service.d/*.conf; then
            say "systemd is $version: going on, because of the drop-in in /etc/systemd/system/peerix.service.d"
        else
            fail 69 "systemd is $version; peerix.service needs 254, for ImportCredential= (the signing key), and 253 for Type=notify-reload" \
                "right is a newer systemd, or on 252 and 253 the drop-in docs/systemd-252.conf: see docs/install.md, \"systemd 252\""
        fi
    fi
    case " $(systemctl show --property=UnitPath --value) " in
    *" $units "*) ;;
    *) fail 69 "systemd does not read units in $units; right is a prefix such as /usr/local or /usr (\`systemctl show --property=UnitPath\` lists the directories), or DESTDIR for a package" ;;
    esac
    # Ours would be hidden by it, or would hide it; under /usr it may belong to a package.
    for unit in peerix.socket peerix.service; do
        masked "$unit" && continue
        other=$(shown FragmentPath "$unit")
        [ ! -e "$other" ] || { [ "$other" = "$units/$unit" ] && [ -e "$record" ]; } ||
            fail 69 "there is another peerix on this machine, with the unit $other; remove it first (a package with the package manager)"
    done
}

# Whether all that is to be installed is there.
check_files() {
    [ -f "$binary" ] || fail 66 "there is no program $binary; right is one built by \`cargo build --release\`, or another by --binary FILE"
    if live && ! "$binary" --version >/dev/null 2>&1; then
        fail 69 "$binary does not run on this machine: $("$binary" --version 2>&1 | head -n 1)" \
            "right is one that was built for this machine's processor and C library"
    fi
    say "$files" | while read -r source _; do
        [ -f "$top/$source" ] || fail 66 "$top/$source is missing; right is a complete source or release archive"
    done
    grep -q '^ExecStart=/usr/bin/peerix$' "$top/systemd/peerix.service" ||
        fail 66 "$top/systemd/peerix.service has no line ExecStart=/usr/bin/peerix, so it is not the shipped unit"
}

# Every file that an installation has.
targets() {
    say "$record" "$prefix/bin/peerix"
    say "$files" | while read -r _ target; do say "$target"; done
}

# Which directories they need that are not there.
missing_directories() {
    targets | while read -r path; do
        while path=$(dirname -- "$path") && [ ! -d "$path" ]; do say "$path"; done
    done | sort -u
}

# recorded KIND: the paths of that kind that earlier installations wrote down.
recorded() {
    [ ! -e "$record" ] || sed -n "s/^$1 //p" "$record"
}

# Write down what will have been made before it is made: whatever ends this script, `--uninstall` finds it.
write_record() {
    directories=$(recorded d; missing_directories)
    files_before=$(recorded f)
    mkdir -p -- "$(dirname -- "$record")"
    rm -f -- "$record.new"
    {
        say "$directories" | sed -n 's/^./d &/p' | sort -u
        { say "$files_before"; targets; } | sed -n 's/^./f &/p' | sort -u
    } >"$record.new"
    mv -f -- "$record.new" "$record"
}

# What an earlier version had and this one does not.
remove_outdated() {
    recorded f | while read -r path; do
        targets | grep -qxF -e "$path" || remove_file "$path"
    done
    rm -f -- "$record.new"
    { recorded d | sed 's/^/d /'; targets | sed 's/^/f /'; } >"$record.new"
    mv -f -- "$record.new" "$record"
}

# put MODE TARGET: standard input becomes the file TARGET, by a rename, so that whoever uses the old one keeps it whole.
put() {
    mkdir -p -- "$(dirname -- "$destdir$2")"
    # Not through a link that somebody has laid there.
    rm -f -- "$destdir$2.new"
    cat >"$destdir$2.new"
    chmod "$1" "$destdir$2.new"
    mv -f -- "$destdir$2.new" "$destdir$2"
    say "installed $destdir$2"
}

# Whether this goes over an earlier installation, one that came as far as its last file.
upgrade=false

install_files() {
    if live; then
        if [ -e "$record" ] && [ -e "$prefix/share/doc/peerix/peerix.toml" ]; then upgrade=true; fi
        write_record
    fi
    put 755 "$prefix/bin/peerix" <"$binary"
    say "$files" | while read -r source target; do
        case $source in
        *.service) sed "s|^ExecStart=/usr/bin/peerix|ExecStart=$prefix/bin/peerix|" "$top/$source" | put 644 "$target" ;;
        *) put 644 "$target" <"$top/$source" ;;
        esac
    done
    ! live || remove_outdated
}

start() {
    systemctl daemon-reload
    say "systemd has read the units"
    for unit in peerix.socket peerix.service; do
        if masked "$unit"; then
            say "$unit is masked by this machine's owner, so nothing is started; when it is to run: systemctl unmask $unit && systemctl enable --now peerix.socket"
            return 0
        fi
    done
    # Never restarted: a socket that is closed for a moment refuses connections, one that stays open
    # keeps what arrives until the new daemon reads it. One that its owner has closed stays so; one that a
    # program closed which could not start is opened again: this one may.
    state=$(shown ActiveState peerix.socket)
    if ! $upgrade; then
        systemctl enable --quiet --now peerix.socket
        say "peerix.socket is enabled and listens on TCP and UDP port 12304"
    elif [ "$state" = active ]; then
        say "peerix.socket listens all the while"
    elif [ "$state" = failed ]; then
        systemctl start peerix.socket
        say "peerix.socket had failed and listens again"
    else
        say "peerix.socket was stopped and stays so; when it is to run: systemctl enable --now peerix.socket"
    fi
    ran=$(shown ActiveState peerix.service)
    systemctl try-restart peerix.service ||
        fail 1 "peerix.service did not start again; \`systemctl status peerix.service\` says why"
    [ "$ran" != active ] || say "peerix.service was running and has been restarted"
}

tell_what_is_left() {
    say '' 'Left to do:'
    if grep -Eqs '^[[:space:]]*(extra-)?substituters[[:space:]]*=.*http://127\.0\.0\.1:12304(/|[[:space:]]|$)' /etc/nix/nix.conf; then
        say '- /etc/nix/nix.conf already names the substituter http://127.0.0.1:12304/'
    else
        say '- add this line to /etc/nix/nix.conf:' '      extra-substituters = http://127.0.0.1:12304/' \
            '- restart the Nix daemon, if there is one: systemctl restart nix-daemon.service'
    fi
    say '- let TCP and UDP port 12304 through the firewall, from the local network' \
        "Settings are optional: $prefix/share/doc/peerix/peerix.toml has them all, for /etc/peerix/peerix.toml"
}

uninstall() {
    if [ ! -e "$record" ]; then
        say "nothing to remove: $record, which would list what was installed in $prefix, is not there"
        return 0
    fi
    # The sockets before the service, or the next packet would start it again.
    for unit in peerix.socket peerix-refresh.path peerix-refresh.service peerix.service; do
        if masked "$unit"; then
            say "$unit is masked by this machine's owner and stays so"
        elif [ "$unit" != peerix.service ] && [ -e "$units/$unit" ]; then
            systemctl disable --quiet "$unit"
        fi
        # `disable` passes over what is masked, and knows nothing of a unit without its file.
        for link in /etc/systemd/system/*.wants/"$unit"; do
            [ "$(readlink -- "$link")" != "$units/$unit" ] || rm -f -- "$link"
        done
        if systemctl stop "$unit" 2>/dev/null; then
            say "stopped $unit"
        elif [ "$(shown LoadState "$unit")" != not-found ]; then
            fail 1 "$unit could not be stopped; \`systemctl status $unit\` says why, then --uninstall can be run again"
        fi
    done
    # What the daemon remembered of its neighbours; the first is a link to the second.
    rm -rf /run/peerix /run/private/peerix /var/cache/peerix /var/cache/private/peerix
    directories=$(recorded d | sort -r)
    recorded f | while read -r path; do
        [ "$path" = "$record" ] || remove_file "$path"
    done
    # Last, so that what is interrupted can be done again.
    remove_file "$record"
    for path in $directories; do
        check_below "$path"
        if rmdir -- "$path" 2>/dev/null; then
            say "removed $path"
        else
            say "kept $path, which has other files in it"
        fi
    done
    systemctl daemon-reload
    systemctl reset-failed peerix.socket peerix.service 2>/dev/null || :
    say 'systemd has forgotten the units' ''
    for path in /etc/peerix /etc/credstore/peerix.signing-key /etc/systemd/system/peerix.socket.d /etc/systemd/system/peerix.service.d; do
        [ ! -e "$path" ] || say "kept $path, which is yours"
    done
    if grep -qs '127\.0\.0\.1:12304' /etc/nix/nix.conf; then
        say '/etc/nix/nix.conf still names http://127.0.0.1:12304/: take that line out and restart the Nix daemon.' \
            'Until then Nix may fail at the closed port, unless it has fallback = true'
    fi
}

# check_below PATH: the record may have been written to by others, and root believes it no path that
# leads out of the prefix.
check_below() {
    case $1 in
    */../* | */.. | */./* | */.) ;;
    "$prefix"/*) return 0 ;;
    /*) # A directory that the prefix itself needed.
        case $prefix/ in "$1"/*) return 0 ;; esac
        ;;
    esac
    fail 66 "$record lists $1, which is not in $prefix; right are only paths that were installed there"
}

# remove_file PATH
remove_file() {
    check_below "$1"
    [ -e "$1" ] || return 0
    rm -f -- "$1"
    say "removed $1"
}

if [ "$action" = uninstall ]; then
    live || fail 64 "--uninstall with DESTDIR: an installation there is removed by removing $destdir"
    check_rights
    uninstall
    exit 0
fi
if live; then
    check_rights
    check_systemd
fi
check_files
install_files
if live; then
    start
    tell_what_is_left
fi
