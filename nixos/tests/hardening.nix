# What the service may do, as systemd judges it and as the kernel says of the process.
{ lib, ... }:
{
  name = "peerix-hardening";

  nodes.dynamic = ./shared/host.nix;
  nodes.static =
    { ... }:
    {
      imports = [ ./shared/host.nix ];
      users.users.peerix = {
        isSystemUser = true;
        group = "peerix";
      };
      users.groups.peerix = { };
      services.peerix.user = "peerix";
      services.peerix.group = "peerix";
    };
  nodes.keyless =
    { ... }:
    {
      imports = [ ./shared/host.nix ];
      services.peerix.privateKeyFile = lib.mkForce "/run/test/no-such-key";
    };

  testScript = ''
    ${builtins.readFile ./shared/steps.py}
    start_all()
    for machine in (dynamic, static, keyless):
        machine.wait_for_unit("peerix.socket")
        lay_key(machine)
        machine.succeed("systemd-analyze verify --man=no peerix.socket peerix.service")
        machine.succeed("systemd-analyze security --threshold=12 peerix.service")

    for machine, made_up in ((dynamic, "yes"), (static, "no")):
        assert machine.succeed("systemctl show -P DynamicUser peerix.service").strip() == made_up

    for machine in (dynamic, static):
        with subtest(f"{machine.name}: a process without rights, which can sign"):
            path = build(machine, "signed-here")
            info = path.removeprefix("/nix/store/")[:32] + ".narinfo"
            assert "Sig: peerix-test-1:" in machine.succeed(f"curl -sf http://127.0.0.1:12304/local/{info}")
            status = machine.succeed("cat /proc/$(systemctl show -P MainPID peerix.service)/status")
            facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            assert "0" not in facts["Uid"].split(), facts["Uid"]
            for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert int(facts[capabilities], 16) == 0, capabilities
            assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")
            machine.succeed("ls -l /run/test/secret-key | grep '^-rw-------.* root root'")

    with subtest("a key that is not there costs misses, not builds"):
        path = build(keyless, "never-signed")
        info = path.removeprefix("/nix/store/")[:32] + ".narinfo"
        status = "curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:12304"
        assert keyless.succeed(f"{status}/{info}") == "404"
        keyless.succeed("systemctl status peerix.service | grep -F 'cannot sign'")
  '';
}
