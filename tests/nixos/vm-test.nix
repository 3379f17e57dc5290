# A stand-in for the module system of NixOS VM tests: what nixos/tests uses of it. Nothing boots.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  machine =
    node:
    (lib.evalModules {
      modules = [
        ./system.nix
        config.defaults
        node
      ];
      specialArgs = { inherit pkgs; };
    }).config.rendered;
in
{
  options = {
    name = mkOption { type = types.str; };
    defaults = mkOption { type = types.raw; };
    nodes = mkOption { type = types.attrsOf types.raw; };
    testScript = mkOption { type = types.lines; };
    evaluated = mkOption { type = types.anything; };
  };
  config.evaluated = {
    nodes = lib.mapAttrs (_: machine) config.nodes;
    script = config.testScript;
  };
}
