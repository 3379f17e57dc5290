# A machine with the Python peerix on the same network: each finds what the other has. Its place is taken
# by a stand-in that speaks the old protocol and nothing else (tests/lab/old_peerix.py).
{ pkgs, lib, ... }:
{
  name = "peerix-old-peer";

  nodes.new = ./shared/host.nix;

  nodes.old =
    { config, ... }:
    {
      imports = [ ./shared/host.nix ];
      services.peerix.enable = lib.mkForce false;
      nix.settings.extra-substituters = [ "http://127.0.0.1:12304/" ];
      nix.settings.trusted-public-keys = [ (lib.trim (builtins.readFile ./shared/public-key)) ];
      networking.firewall.allowedTCPPorts = [ 12304 ];
      networking.firewall.allowedUDPPorts = [ 12304 ];
      systemd.services.old-peerix = {
        wantedBy = [ "multi-user.target" ];
        path = [
          config.nix.package
          pkgs.iproute2
        ];
        serviceConfig.ExecStart = "${lib.getExe pkgs.python3} ${../../tests/lab/old_peerix.py}";
      };
    };

  testScript = ''
    ${builtins.readFile ./shared/steps.py}
    start_all()
    new.wait_for_unit("peerix.socket")
    lay_key(new)
    old.wait_for_unit("old-peerix.service")
    old.wait_for_open_port(12304)
    new.wait_until_succeeds("ping -c 1 old")

    with subtest("the old one finds what the new one has"):
        path = build(new, "made-by-the-new")
        old.succeed(f"nix-store --realise {path}")
        old.succeed(f"nix-store --verify-path {path}")

    with subtest("the new one finds what the old one has"):
        path = build(old, "made-by-the-old")
        old.succeed(
            "nix --extra-experimental-features nix-command"
            f" store sign --key-file /etc/test/secret-key {path}"
        )
        new.succeed(f"nix-store --realise {path}")
        new.succeed(f"nix-store --verify-path {path}")
  '';
}
