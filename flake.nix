{
  description = "Peer-to-peer binary cache for Nix on the local network";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      forEachSystem =
        make:
        lib.genAttrs [
          "x86_64-linux"
          "aarch64-linux"
        ] (system: make nixpkgs.legacyPackages.${system} self.packages.${system});

      # With the package of this flake, whatever Nixpkgs the machine has: an older one may have an older
      # Rust than peerix needs.
      module =
        { lib, pkgs, ... }:
        {
          imports = [ ./nixos/module.nix ];
          services.peerix.package = lib.mkDefault self.packages.${pkgs.stdenv.hostPlatform.system}.peerix;
        };
    in
    {
      packages = forEachSystem (
        pkgs: _: rec {
          peerix = pkgs.callPackage ./nixos/package.nix { };
          default = peerix;
        }
      );

      overlays.default = final: _: { peerix = final.callPackage ./nixos/package.nix { }; };

      nixosModules = {
        peerix = module;
        default = module;
      };

      apps = forEachSystem (
        _: packages: rec {
          peerix = {
            type = "app";
            program = lib.getExe packages.peerix;
            meta.description = "Run the daemon or one of the operator's commands";
          };
          default = peerix;
        }
      );

      devShells = forEachSystem (
        pkgs: packages: {
          default = pkgs.mkShell {
            inputsFrom = [ packages.peerix ];
            packages = [
              pkgs.clippy
              pkgs.rust-analyzer
              pkgs.rustfmt
            ];
          };
        }
      );

      checks = forEachSystem (
        pkgs: packages:
        {
          package = packages.peerix.overrideAttrs { doCheck = true; };

          clippy = packages.peerix.overrideAttrs (old: {
            pname = "peerix-clippy";
            nativeBuildInputs = old.nativeBuildInputs ++ [ pkgs.clippy ];
            buildPhase = "cargo clippy --all-targets --offline -- -D warnings";
            installPhase = "touch $out";
            doInstallCheck = false;
          });

          format =
            pkgs.runCommand "peerix-format"
              {
                nativeBuildInputs = [
                  pkgs.cargo
                  pkgs.rustfmt
                ];
              }
              ''
                cp -r ${packages.peerix.src} source && cd source
                cargo fmt --check
                touch $out
              '';
        }
        // import ./nixos/tests {
          inherit lib module;
          pkgs = pkgs.extend self.overlays.default;
        }
      );

      formatter = forEachSystem (pkgs: _: pkgs.nixfmt-tree);
    };
}
