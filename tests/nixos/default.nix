# Evaluates nixos/module.nix for each configuration of cases.nix:
#
#     nix-instantiate --eval --strict --json -E '(import ./tests/nixos { }).results'
#
# prints for each what came of it and what was expected; tests/nixos.rs compares. The library can be
# given, see lib.nix.
{
  lib ? import ./lib.nix,
}:
let
  cases = import ./cases.nix;

  evaluate =
    {
      configuration,
      canExecute ? false,
      ...
    }:
    let
      pkgs = import ./pkgs.nix { inherit lib canExecute; };
    in
    (lib.evalModules {
      modules = [
        ./system.nix
        ../../nixos/module.nix
        configuration
      ];
      specialArgs = {
        inherit pkgs;
      };
    }).config;

  # A configuration that cannot be evaluated is null.
  attempt =
    value:
    let
      tried = builtins.tryEval (builtins.deepSeq value value);
    in
    if tried.success then tried.value else null;

  enabled = evaluate { configuration.services.peerix.enable = true; };
in
{
  results = lib.mapAttrs (_: case: {
    got = attempt (evaluate case).rendered;
    inherit (case) expected;
  }) cases;

  # Every typed key of `settings`, those without a default as null.
  keys = enabled.services.peerix.settings;

  # The settings file for these settings.
  settingsOf =
    settings:
    (evaluate {
      configuration.services.peerix = {
        enable = true;
        inherit settings;
      };
    }).rendered.files."peerix/peerix.toml";

  # The VM tests, whole.
  vmTests =
    let
      pkgs = import ./pkgs.nix { inherit lib; };
    in
    lib.mapAttrs (_: test: test.evaluated) (
      import ../../nixos/tests {
        inherit lib pkgs;
        module = ../../nixos/module.nix;
      }
    );

  # The package as it is given to the builder.
  package =
    let
      pkgs = import ./pkgs.nix { inherit lib; };
      given = pkgs.callPackage ../../nixos/package.nix { };
    in
    {
      inherit (given) name postInstall installCheckPhase;
      inherit (given.meta) description mainProgram;
    };

  # What an example of a document makes: of a flake's system `myhost`, or of a module.
  example =
    file:
    let
      flake = (import ../../flake.nix).outputs {
        self = flake;
        inherit nixpkgs;
      };
      stub = (import ./flake.nix).outputs { };
      nixpkgs = stub // {
        lib = lib // {
          nixosSystem =
            { modules, ... }:
            lib.evalModules {
              modules = [ ./system.nix ] ++ modules;
              specialArgs.pkgs = nixpkgs.legacyPackages.x86_64-linux;
            };
        };
      };
      text = import file;
      system =
        if text ? outputs then
          (text.outputs {
            inherit nixpkgs;
            peerix = flake;
            self = { };
          }).nixosConfigurations.myhost
        else
          nixpkgs.lib.nixosSystem {
            modules = lib.optional (!(text ? imports)) ../../nixos/module.nix ++ [ text ];
          };
    in
    attempt system.config.rendered;
}
