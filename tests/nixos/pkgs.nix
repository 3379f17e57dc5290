# A stand-in for the packages of Nixpkgs. Nothing can be built with it: a package is a name, the path
# where it would be, and what it would be made from. `canExecute` says whether the machine that builds
# can run what it builds. It does not cover the builders: which arguments they take, and what they do.
{
  lib,
  canExecute ? false,
  system ? "x86_64-linux",
}:
let
  inherit (builtins)
    concatStringsSep
    isAttrs
    isBool
    isInt
    isList
    toJSON
    ;

  package =
    name: more:
    {
      type = "derivation";
      inherit name system;
      outPath = "/nix/store/00000000000000000000000000000000-${name}";
      drvPath = "/nix/store/00000000000000000000000000000000-${name}.drv";
      outputName = "out";
      overrideAttrs =
        change: package name (more // (if builtins.isFunction change then change more else change));
    }
    // more;
  tool = name: package "${name}-1.0" { pname = name; };

  # TOML of the settings that occur; a JSON string is a TOML string.
  plain =
    value:
    if isList value then
      "[${concatStringsSep ", " (map plain value)}]"
    else if isBool value then
      (if value then "true" else "false")
    else if isInt value then
      toString value
    else
      toJSON value;
  table =
    path: set:
    let
      keys = lib.filterAttrs (_: value: !isAttrs value) set;
      tables = lib.filterAttrs (_: isAttrs) set;
      head = lib.optionalString (path != [ ] && keys != { }) "[${concatStringsSep "." path}]\n";
    in
    head
    + concatStringsSep "" (lib.mapAttrsToList (name: value: "${name} = ${plain value}\n") keys)
    + concatStringsSep "" (lib.mapAttrsToList (name: table (path ++ [ name ])) tables);

  settings =
    with lib.types;
    let
      value =
        oneOf [
          bool
          int
          float
          str
          (listOf value)
          (attrsOf value)
        ]
        // {
          name = "TOML value";
        };
    in
    attrsOf value;

  # A VM test is evaluated whole: every machine's configuration, and the script.
  vmTest =
    pkgs: test:
    let
      inherit
        (lib.evalModules {
          modules = [
            ./vm-test.nix
            test
          ];
          specialArgs = { inherit pkgs; };
        })
        config
        ;
      name = "vm-test-run-${config.name}";
    in
    package (builtins.deepSeq config.evaluated name) { inherit (config) evaluated; };

  pkgs = {
    inherit lib;
    stdenv.buildPlatform.canExecute = _: canExecute;
    stdenv.hostPlatform = { inherit system; };

    formats.toml = _: {
      type = settings;
      generate = name: set: package name { text = table [ ] set; };
    };
    runCommand = name: _: script: package name { inherit script; };
    callPackage =
      file: given:
      let
        function = import file;
      in
      function (builtins.intersectAttrs (builtins.functionArgs function) pkgs // given);
    extend = overlay: pkgs // overlay pkgs pkgs;
    mkShell = package "nix-shell";
    rustPlatform.buildRustPackage = given: package "${given.pname}-${given.version}" given;
    testers.runNixOSTest = vmTest pkgs;

    cargo = tool "cargo";
    clippy = tool "clippy";
    curl = tool "curl";
    installShellFiles = tool "install-shell-files";
    iproute2 = tool "iproute2";
    jq = tool "jq";
    nix = tool "nix";
    nixfmt-tree = tool "nixfmt-tree";
    python3 = tool "python3";
    rust-analyzer = tool "rust-analyzer";
    rustfmt = tool "rustfmt";
    systemd = package "systemd-257.10" {
      pname = "systemd";
      version = "257.10";
    };
    # As installed on the hosts of the lab.
    peerix = package "peerix-0.1.0" {
      outPath = "/usr";
      version = "0.1.0";
    };
  };
in
pkgs
