# The NixOS VM tests: each file of this folder is one, by its name.
{
  lib,
  pkgs,
  # services.peerix, with a package for these machines.
  module,
}:
let
  files = lib.filterAttrs (
    name: kind: kind == "regular" && lib.hasSuffix ".nix" name && name != "default.nix"
  ) (builtins.readDir ./.);
in
lib.mapAttrs' (name: _: {
  name = "vm-${lib.removeSuffix ".nix" name}";
  value = pkgs.testers.runNixOSTest {
    imports = [ ./${name} ];
    defaults.imports = [ module ];
  };
}) files
