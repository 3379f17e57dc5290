# A stand-in for NixOS: the options that services.peerix sets, and what comes of them.
#
# What it does not cover: that the real options still have these names and types; the environment that
# NixOS gives each service (PATH, locale, time zone); how packages' units, drop-ins and [Install]
# sections are laid out in /etc/systemd/system; restarts and reloads at a switch; the firewall's
# rules. A NixOS machine shows those: nixos/tests.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  option =
    type: default:
    mkOption {
      inherit type default;
    };
  list = option (types.listOf types.str) [ ];
  ports = option (types.listOf types.port) [ ];
  text = option types.lines "";
  # What a section of a unit may hold: one value, or a key several times.
  section = option (types.attrsOf types.anything) { };

  unitOptions = {
    enable = option types.bool true;
    description = option types.str "";
    documentation = list;
    wantedBy = list;
    after = list;
    before = list;
    requires = list;
    wants = list;
    unitConfig = section;
  };
  units = more: option (types.attrsOf (types.submodule { options = unitOptions // more; })) { };
  firewall = {
    allowedTCPPorts = ports;
    allowedUDPPorts = ports;
  };

  asText = value: if value == true then "true" else if value == false then "false" else toString value;
  lines =
    keys:
    lib.concatStringsSep "" (
      lib.concatLists (
        lib.mapAttrsToList (
          name: value: map (one: "${name}=${asText one}\n") (if lib.isList value then value else [ value ])
        ) keys
      )
    );
  words = name: value: lib.optionalAttrs (value != [ ]) { ${name} = toString value; };

  unitSection =
    unit:
    lib.optionalAttrs (unit.description != "") { Description = unit.description; }
    // words "Documentation" unit.documentation
    // words "After" unit.after
    // words "Before" unit.before
    // words "Requires" unit.requires
    // words "Wants" unit.wants
    // words "X-Reload-Triggers" (unit.reloadTriggers or [ ])
    // unit.unitConfig;
  rendered =
    unit: kind: keys:
    let
      head = lines (unitSection unit);
      body = keys;
    in
    lib.optionalString (head != "") "[Unit]\n${head}" + lib.optionalString (body != "") "[${kind}]\n${body}";

  service =
    unit:
    rendered unit "Service" (
      lib.optionalString (!unit.stopIfChanged) "X-StopIfChanged=false\n" + lines unit.serviceConfig
    );
  socket =
    unit:
    rendered unit "Socket" (
      lines unit.socketConfig
      + lib.concatMapStrings (address: "ListenStream=${address}\n") unit.listenStreams
      + lib.concatMapStrings (address: "ListenDatagram=${address}\n") unit.listenDatagrams
    );
  path = unit: rendered unit "Path" (lines unit.pathConfig);

  # Of a file that would be built: what it is built from.
  contentOf =
    source:
    if lib.isDerivation source then source.text or source.script else builtins.readFile source;

  named =
    suffix: render: set:
    lib.listToAttrs (
      lib.mapAttrsToList (name: unit: {
        name = "${name}.${suffix}";
        value = {
          text = render unit;
          inherit (unit) wantedBy;
        };
      }) set
    );
in
{
  options = {
    assertions = option (types.listOf types.anything) [ ];
    warnings = list;
    environment.systemPackages = option (types.listOf types.package) [ ];
    environment.etc = option (types.attrsOf (
      types.submodule {
        options.source = option (types.nullOr types.path) null;
        options.text = option (types.nullOr types.lines) null;
      }
    )) { };
    services.avahi = {
      enable = option types.bool false;
      publish.enable = option types.bool false;
      extraServiceFiles = option (types.attrsOf types.lines) { };
    };
    services.resolved.enable = option types.bool false;

    systemd.package = option types.package pkgs.systemd;
    systemd.packages = option (types.listOf types.package) [ ];
    systemd.services = units {
      environment = option (types.attrsOf types.str) { };
      path = option (types.listOf types.anything) [ ];
      script = text;
      serviceConfig = section;
      reloadTriggers = option (types.listOf types.anything) [ ];
      restartTriggers = option (types.listOf types.anything) [ ];
      stopIfChanged = option types.bool true;
    };
    systemd.sockets = units {
      socketConfig = section;
      listenStreams = list;
      listenDatagrams = list;
    };
    systemd.paths = units { pathConfig = section; };

    nix.package = option types.package pkgs.nix;
    nix.settings = option (types.attrsOf (
      types.oneOf [
        types.str
        types.bool
        (types.listOf types.str)
      ]
    )) { };
    nix.extraOptions = text;
    virtualisation.writableStore = option types.bool false;
    users.users = option (types.attrsOf types.anything) { };
    users.groups = option (types.attrsOf types.anything) { };
    networking.firewall = firewall // {
      enable = option types.bool true;
      interfaces = option (types.attrsOf (types.submodule { options = firewall; })) { };
    };

    # The result.
    rendered = option types.anything { };
  };

  config = {
    nix.settings.substituters = lib.mkAfter [ "https://cache.nixos.org/" ];
    rendered = {
      units =
        named "service" service config.systemd.services
        // named "socket" socket config.systemd.sockets
        // named "path" path config.systemd.paths;
      files = lib.mapAttrs (
        _: file: if file.text == null then contentOf file.source else file.text
      ) config.environment.etc;
      announcements = config.services.avahi.extraServiceFiles;
      packages = map (package: package.name) config.systemd.packages;
      programs = map (package: package.name) config.environment.systemPackages;
      nix = config.nix.settings;
      nixExtra = config.nix.extraOptions;
      firewall = {
        inherit (config.networking.firewall) allowedTCPPorts allowedUDPPorts interfaces;
      };
      warnings = config.warnings;
      failures = map (it: it.message) (lib.filter (it: !it.assertion) config.assertions);
    };
  };
}
