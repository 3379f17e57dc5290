# Takes the place of Nixpkgs when the project's flake.nix is evaluated without a network:
#
#     nix flake show --override-input nixpkgs path:tests/nixos
{
  description = "A stand-in for Nixpkgs";

  outputs = _: rec {
    lib = import ./lib.nix;
    legacyPackages = lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (
      system: import ./pkgs.nix { inherit lib system; }
    );
  };
}
