# A machine of the VM tests: peerix, a signing key for what is built here, and something to build.
{ lib, pkgs, ... }:
{
  services.peerix = {
    enable = true;
    package = pkgs.peerix;
    share = "built";
    # Laid there by the test, because a key in the Nix store is refused.
    privateKeyFile = "/run/test/secret-key";
    publicKeyFile = ./public-key;
    settings.idle.timeout = "5s";
    # A machine without KVM takes long to start a service.
    settings.discovery.wake-timeout = "5s";
  };

  # Builds are trivial, and the builder is the machine's own shell.
  nix.settings.sandbox = false;
  # No test leaves its network; misses are asked again at once.
  nix.settings.substituters = lib.mkForce [ ];
  nix.extraOptions = "narinfo-cache-negative-ttl = 0";

  virtualisation.writableStore = true;
  environment.etc."test/path.nix".source = ./path.nix;
  environment.etc."test/secret-key".source = ./secret-key;
  environment.systemPackages = [
    pkgs.curl
    pkgs.jq
  ];
}
