# Asleep is free: the daemon goes when nobody asks, and the first packet or request starts it again.
{ ... }:
{
  name = "peerix-idle";

  nodes.holder = ./shared/host.nix;
  nodes.asker = ./shared/host.nix;

  testScript = ''
    ${builtins.readFile ./shared/steps.py}
    start_all()
    for machine in (holder, asker):
        machine.wait_for_unit("peerix.socket")
        lay_key(machine)
    path = build(holder, "kept-by-a-sleeper")
    info = path.removeprefix("/nix/store/")[:32] + ".narinfo"
    asker.wait_until_succeeds("ping -c 1 holder")

    ways = {
        "a request from the LAN": lambda: asker.succeed(f"curl -sf http://holder:12304/local/{info}"),
        "a lookup of the neighbour": lambda: asker.succeed(f"curl -sf http://127.0.0.1:12304/{info}"),
        "a request of the owner": lambda: holder.succeed(f"curl -sf http://127.0.0.1:12304/{info}"),
    }
    for way, ask in ways.items():
        with subtest(f"{way} wakes it"):
            await_asleep(holder)
            assert path in ask()
            holder.succeed("systemctl is-active peerix.service")

    with subtest("new settings are taken by a reload, and the socket stays"):
        await_asleep(holder)
        holder.succeed(f"curl -sf http://127.0.0.1:12304/{info} && systemctl reload peerix.service")
        holder.succeed(f"curl -sf http://127.0.0.1:12304/{info}")
  '';
}
