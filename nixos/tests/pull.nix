# Two machines and a plain substituter: a path comes from the neighbour; what the neighbour has not got
# comes from the substituter; and without the neighbour everything goes on.
{ pkgs, lib, ... }:
let
  root = "/srv/cache";
in
{
  name = "peerix-pull";

  nodes.first = ./shared/host.nix;

  nodes.second =
    { ... }:
    {
      imports = [ ./shared/host.nix ];
      nix.settings.substituters = lib.mkOverride 40 [ "http://cache" ];
    };

  # A binary cache of files.
  nodes.cache =
    { ... }:
    {
      imports = [ ./shared/host.nix ];
      services.peerix.enable = lib.mkForce false;
      systemd.services.cache = {
        wantedBy = [ "multi-user.target" ];
        script = ''
          mkdir -p ${root}
          echo "StoreDir: /nix/store" > ${root}/nix-cache-info
          exec ${lib.getExe pkgs.python3} -m http.server 80 -d ${root}
        '';
      };
      networking.firewall.allowedTCPPorts = [ 80 ];
    };

  testScript = ''
    ${builtins.readFile ./shared/steps.py}

    def publish(name):
        """Build the path of that name where only the substituter has it; returns it."""
        path = build(cache, name)
        cache.succeed(
            "nix --extra-experimental-features nix-command copy"
            f" --to 'file://${root}?secret-key=/etc/test/secret-key' {path}"
        )
        return path


    start_all()
    for machine in (first, second):
        machine.wait_for_unit("peerix.socket")
        lay_key(machine)
    cache.wait_for_unit("cache.service")
    cache.wait_for_open_port(80)
    second.wait_until_succeeds("ping -c 1 first && ping -c 1 cache")

    with subtest("nobody runs before anyone asks"):
        for machine in (first, second):
            machine.fail("systemctl is-active peerix.service")

    with subtest("a path comes from the neighbour, signed by its key"):
        path = build(first, "from-the-neighbour")
        second.succeed(f"nix-store --realise {path}")
        second.succeed(f"nix-store --verify-path {path}")
        first.succeed("journalctl -u peerix.service | grep -F from-the-neighbour")

    with subtest("what the neighbour has not got comes from the substituter"):
        path = publish("from-the-substituter")
        second.succeed(f"nix-store --realise {path}")
        second.succeed(f"nix-store --verify-path {path}")

    with subtest("without the neighbour nothing fails, and nothing waits"):
        path = publish("neighbour-gone")
        first.crash()
        second.succeed(f"timeout 10 nix-store --realise {path}")

    with subtest("a closed socket fails nothing where Nix may fall back"):
        path = publish("daemon-gone")
        second.succeed("systemctl stop peerix.socket peerix.service")
        second.succeed(f"timeout 60 nix-store --realise --fallback {path}")
  '';
}
