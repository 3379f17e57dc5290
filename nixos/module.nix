# services.peerix: a peer-to-peer binary cache for Nix on the local network.
#
# The units are those of the package (systemd/ in the source); what is added here are drop-ins, the
# settings file, two lines of nix.conf, and the open port. Every option of the module of the Python
# peerix is here with its type, so that a configuration written for it evaluates unchanged.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkIf mkOption types;

  cfg = config.services.peerix;
  format = pkgs.formats.toml { };

  gateway = "http://127.0.0.1:${toString cfg.settings.port}/";

  # Left out of the file where it is null, so that the program's default holds.
  key =
    type: description:
    mkOption {
      type = types.nullOr type;
      default = null;
      inherit description;
    };
  duration = types.strMatching "[0-9]+ ?(ms|s|min|h)";
  size = types.strMatching "[0-9]+ ?(B|KiB|MiB|GiB|TiB)";
  names = types.listOf types.str;
  # peerix.toml(5) says what each of these means at length.
  settingsModule = {
    freeformType = format.type;
    options = {
      port = mkOption {
        type = types.port;
        default = cfg.port;
        defaultText = lib.literalExpression "config.services.peerix.port";
        description = "TCP and UDP port; also the port at which peers are asked.";
      };
      priority = key types.ints.unsigned "Priority told to Nix: lower is asked first, cache.nixos.org has 40. Default: 20.";
      user = key types.str "User of a daemon that was started by hand as root; see `services.peerix.user` for the service.";
      group = key types.str "Group of a daemon that was started by hand as root.";
      allowed-networks = key names "Networks whose machines get an answer. Default: loopback, link-local, RFC 1918, RFC 4193 and 100.64.0.0/10.";

      interfaces.include = mkOption {
        type = types.nullOr names;
        default = if cfg.interfaces == [ ] then null else cfg.interfaces;
        defaultText = lib.literalExpression "config.services.peerix.interfaces";
        description = "Globs on names of interfaces to ask on. Default: all with a private or link-local IPv4 network, or a link-local IPv6 address and no public IPv4 one.";
      };
      interfaces.exclude = key names "Of those, not these. Default: docker* br-* veth* virbr* tun* wg*.";

      idle.timeout = mkOption {
        type = types.nullOr duration;
        default = cfg.idleTimeout;
        defaultText = lib.literalExpression "config.services.peerix.idleTimeout";
        description = ''Exit after this long without a lookup or request; the next one starts the daemon again. "0s": never. Default: "5min".'';
      };

      discovery = {
        timeout = key duration ''Wait for peers that run the first peerix, which do not say what they do not have. Default: "50ms".'';
        wake-timeout = key duration ''Longest wait for a peer that does not answer: it may be asleep. Default: "300ms".'';
        broadcast = key types.bool "Whether to ask by broadcast; otherwise only `discovery.peers` are asked. Default: true.";
        dns-sd = key types.bool "Whether to announce this machine by DNS-SD while it is awake, and to find others so. Default: true, if `broadcast` is.";
        peers = mkOption {
          type = types.nullOr names;
          default = if cfg.peers == [ ] then null else cfg.peers;
          defaultText = lib.literalExpression "config.services.peerix.peers";
          description = "Peers and plain binary caches asked directly; see `services.peerix.peers`.";
        };
        domain = mkOption {
          type = types.nullOr types.str;
          default = cfg.domain;
          defaultText = lib.literalExpression "config.services.peerix.domain";
          description = "DNS domain whose _peerix._tcp SRV records name peers.";
        };
      };

      share = {
        paths = mkOption {
          type = types.nullOr shareRule;
          default = cfg.share;
          defaultText = lib.literalExpression "config.services.peerix.share";
          description = "What neighbours may have; see `services.peerix.share`.";
        };
        keys = key names ''Public keys whose signature lets a path leave this machine: "NAME:BASE64", or the "NAME" of a key that is trusted. Default: the key of cache.nixos.org.'';
        exclude = key names "Globs on names that are not shared unless a key of `share.keys` signed the path.";
      };

      trust = {
        public-keys = key names ''Public keys that peerix trusts beside those of nix.conf: "NAME:BASE64".'';
        nix-conf = key types.str "Where this machine's Nix is configured. Default: /etc/nix/nix.conf.";
      };

      signing.key-file = key types.str "Not for the service: use `services.peerix.privateKeyFile`.";

      store = {
        dir = key types.str "The store directory as it stands in store paths. Default: /nix/store.";
        real-dir = key types.str "Where its files are, if elsewhere.";
        database = key types.str "The Nix database, only ever read. Default: /nix/var/nix/db/db.sqlite.";
      };

      limits = {
        upload = key size "Bytes a second served to the LAN, over all peers. Default: unlimited.";
        buffer = key size ''Memory for NAR streams, in all. Default: "40MiB".'';
        drain = key duration ''How long requests under way may take once the daemon stops. Default: "1s".'';
        connections = key types.ints.unsigned "Open connections; 64 of them are kept for loopback. Default: 1024.";
        narinfo = key size ''Largest narinfo taken from a peer. Default: "64KiB".'';
        nar = key size ''Largest NAR taken from a peer. Default: "1TiB".'';
        stall = key duration ''How long a holder of a NAR may send nothing where another one can go on. Default: "1s".'';
        stall-alone = key duration ''The same where no other holder is known. Default: "2s".'';
      };
    };
  };

  shareRule = types.enum [
    "signed"
    "built"
    "all"
    "none"
  ];

  # TOML has no null, and an empty table says nothing.
  withoutNulls =
    set:
    lib.filterAttrs (_: value: value != null && value != { }) (
      lib.mapAttrs (
        _: value: if lib.isAttrs value && !lib.isDerivation value then withoutNulls value else value
      ) set
    );

  written = format.generate "peerix.toml" (withoutNulls cfg.settings);

  # A mistake fails the build that brings it in, not the machine that gets it.
  checked =
    if pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform then
      pkgs.runCommand "peerix.toml" { preferLocalBuild = true; } ''
        ${cfg.package}/bin/peerix --check-config --config ${written}
        cp ${written} $out
      ''
    else
      written;

  # `nobody` was the default of the old module, so it says nothing; and systemd warns of a service of
  # that user, who shares files and processes with all others of its kind.
  nobodies = [
    null
    "nobody"
    "nogroup"
    65534
  ];
  isChosen = id: !lib.elem id nobodies;
  isGlob = name: builtins.match ".*[*?[].*" name != null;
  isRoot = id: id == "root" || id == 0 || id == "0";

  # A line break in one would end the line of nix.conf.
  publicKeys = map lib.trim (
    lib.optional (cfg.publicKey != null) cfg.publicKey
    ++ lib.optional (cfg.publicKeyFile != null) (builtins.readFile cfg.publicKeyFile)
  );

  # What only a configuration for the old module, or for sharing own builds, says.
  speaksOfOldOptions = lib.any (value: value != null) [
    cfg.privateKeyFile
    cfg.publicKeyFile
    cfg.publicKey
    cfg.user
    cfg.group
  ];

  hasDnsSd = !lib.elem false [
    cfg.settings.discovery.dns-sd
    cfg.settings.discovery.broadcast
  ];
  avahiPublishes = config.services.avahi.enable && config.services.avahi.publish.enable;
  # The shipped announcement, at the port in use.
  announcement =
    file: builtins.replaceStrings [ "12304" ] [ (toString cfg.settings.port) ] (builtins.readFile file);

  sleepTargets = [
    "suspend.target"
    "hibernate.target"
    "hybrid-sleep.target"
    "suspend-then-hibernate.target"
  ];
in
{
  options.services.peerix = {
    enable = lib.mkEnableOption "peerix, a peer-to-peer binary cache for Nix on the local network";

    package = mkOption {
      type = types.package;
      default = pkgs.peerix or (pkgs.callPackage ./package.nix { });
      defaultText = lib.literalExpression "pkgs.peerix";
      description = "The peerix package to use; its units are the ones that run.";
    };

    port = mkOption {
      type = types.port;
      default = 12304;
      description = ''
        TCP and UDP port. Peers are asked at the same one, so all machines of a network need the same.
        A running system takes a new one with `systemctl restart peerix.socket`, or at its next boot:
        a switch restarts no socket.
      '';
    };

    openFirewall = mkOption {
      type = types.bool;
      default = true;
      description = ''
        Whether to open the port, TCP and UDP, and UDP port 5353 for DNS-SD unless that is off: on
        `interfaces`, or on all if that is empty.
      '';
    };

    interfaces = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [
        "eth0"
        "wlan0"
      ];
      description = ''
        Network interfaces to work on, by their names: only there the port is opened and
        questions are broadcast. Empty: all.
      '';
    };

    peers = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [
        "10.0.0.1"
        "nas.lan"
        "http://cache.lan:5000"
      ];
      description = ''
        Peers that are asked directly, for networks that broadcast does not reach: addresses or host
        names, with or without a port. And plain binary caches, such as those of nix-serve and
        harmonia, by their `http://` URL.
      '';
    };

    domain = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "example.org";
      description = ''
        DNS domain whose `_peerix._tcp` SRV records name peers, for fleets over several networks.
      '';
    };

    share = mkOption {
      type = types.nullOr shareRule;
      default = null;
      description = ''
        What neighbours may have. `"signed"`: paths with a signature by a key of
        `settings.share.keys`, by default that of cache.nixos.org. `"built"`: also what was built here, if all that it refers to is shared. `"all"`: every
        valid path, secrets in the store included. `"none"`: nothing. Default: `"built"` if
        there is a `privateKeyFile`, else `"signed"`.
      '';
    };

    idleTimeout = mkOption {
      type = types.nullOr duration;
      default = null;
      example = "1h";
      description = ''
        Exit after this long without a lookup or request; the socket starts the daemon again.
        `"0s"`: never. Default: `"5min"`.
      '';
    };

    privateKeyFile = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = "/run/secrets/peerix";
      description = ''
        Secret key to sign own builds with, a file of `nix-store --generate-binary-cache-key`. Read by
        systemd when the daemon starts (LoadCredential=), so it may be for root alone. It must
        not be in the Nix store, where everybody could read it.
      '';
    };

    publicKeyFile = mkOption {
      type = types.nullOr types.path;
      default = null;
      description = ''
        File with a public key that this machine's Nix is to trust; read when the configuration is
        evaluated.
      '';
    };

    publicKey = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "myhost-1:2EGDCPEm15zRnXJYeu3o5z8EWZWkTQTykbkIsaJxdOs=";
      description = "Public key that this machine's Nix is to trust.";
    };

    user = mkOption {
      type = types.nullOr (
        types.oneOf [
          types.str
          types.int
        ]
      );
      default = null;
      description = ''
        User of the service, who has to exist. By default, and with `"nobody"`, it runs as a user that
        systemd makes up at each start (DynamicUser=), which is safer.
      '';
    };

    group = mkOption {
      type = types.nullOr (
        types.oneOf [
          types.str
          types.int
        ]
      );
      default = null;
      description = ''
        Group of the service, which has to exist; of use only with `user`. By default the group of that
        user.
      '';
    };

    globalCacheTTL = mkOption {
      type = types.nullOr types.int;
      default = null;
      description = ''
        For how many seconds Nix is to remember hits and misses, of all substituters. By default
        Nix's own values stay: 30 days and an hour. See also `refreshOnResume`.
      '';
    };

    refreshOnResume = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether to run `peerix refresh` after the machine has slept and when its network has changed:
        Nix forgets which paths the neighbours did not have, so that it asks those it meets now.
        Of use on laptops.
      '';
    };

    settings = mkOption {
      type = types.submodule settingsModule;
      default = { };
      example = lib.literalExpression ''
        {
          discovery.peers = [ "10.0.0.1" ];
          limits.upload = "10MiB";
        }
      '';
      description = ''
        Settings, as in {manpage}`peerix.toml(5)`. They are checked when the system is built. Keys
        that are not given have the program's defaults.
      '';
    };
  };

  config = mkIf cfg.enable {
    assertions = [
      {
        assertion = !lib.hasPrefix "${builtins.storeDir}/" (toString cfg.privateKeyFile);
        message = ''
          services.peerix.privateKeyFile is in the Nix store (${toString cfg.privateKeyFile}), where every user
          can read it. Right would be a file outside of it, for root alone, written as a string: "/run/secrets/peerix".
        '';
      }
      {
        assertion = cfg.settings.signing.key-file == null;
        message = ''
          services.peerix.settings.signing.key-file: the service has no right to read a secret key by itself.
          Right would be services.peerix.privateKeyFile, which systemd reads for it.
        '';
      }
      {
        assertion = isChosen cfg.group -> isChosen cfg.user;
        message = ''
          services.peerix.group is set, and user is not: a user that systemd makes up has a group of its own.
          Right would be both, or none.
        '';
      }
      {
        assertion = !isRoot cfg.user && !isRoot cfg.group;
        message = ''
          services.peerix.user and group: peerix does not run as root. Right would be another user, or
          none, for one that systemd makes up.
        '';
      }
      {
        assertion = cfg.openFirewall -> !lib.any isGlob cfg.interfaces;
        message = ''
          services.peerix.interfaces: the firewall knows names of interfaces, not globs (${toString cfg.interfaces}).
          Right would be the names; or globs in services.peerix.settings.interfaces.include and openFirewall = false.
        '';
      }
      {
        assertion = cfg.interfaces != [ ] -> cfg.settings.interfaces.include == cfg.interfaces;
        message = ''
          services.peerix.interfaces and settings.interfaces.include say different things: the port would be open on
          some interfaces, and questions would go out on others. Right would be one of the two.
        '';
      }
      {
        assertion = lib.versionAtLeast (lib.getVersion config.systemd.package) "254";
        message = ''
          services.peerix needs systemd 254 or newer, this system has ${lib.getVersion config.systemd.package}.
        '';
      }
    ];

    warnings = lib.optional (speaksOfOldOptions && cfg.settings.share.paths == null) ''
      services.peerix: this configuration may be one for the Python peerix, which shared the whole store. Now
      ${
        if cfg.privateKeyFile == null then
          "only paths signed by a key of settings.share.keys are shared, by default what cache.nixos.org signed"
        else
          "paths signed by a key of settings.share.keys are shared, by default what cache.nixos.org signed, and what was built here"
      }. To share every path, secrets in the store included: services.peerix.share = "all". To keep the
      new rule without this warning: services.peerix.share = "${
        if cfg.privateKeyFile == null then "signed" else "built"
      }".
    '';

    environment.systemPackages = [ cfg.package ];
    environment.etc."peerix/peerix.toml".source = checked;

    # Neighbours that broadcast does not reach find this machine also while its daemon sleeps. One
    # announcement is enough.
    services.avahi.extraServiceFiles = mkIf (hasDnsSd && avahiPublishes) {
      peerix = announcement ../systemd/dns-sd/peerix.service;
    };
    environment.etc."systemd/dnssd/peerix.dnssd" =
      mkIf (hasDnsSd && config.services.resolved.enable && !avahiPublishes)
        { text = announcement ../systemd/dns-sd/peerix.dnssd; };

    systemd.packages = [ cfg.package ];

    systemd.sockets.peerix = {
      # [Install] of a packaged unit is not looked at.
      wantedBy = [ "sockets.target" ];
      # The empty one takes back all that the packaged unit names, datagrams too.
      listenStreams = mkIf (cfg.settings.port != 12304) [
        ""
        (toString cfg.settings.port)
      ];
      listenDatagrams = mkIf (cfg.settings.port != 12304) [ (toString cfg.settings.port) ];
    };

    systemd.services.peerix = {
      # New settings are reloaded. For anything else the service is restarted, and not its socket: what
      # arrives meanwhile waits there.
      reloadTriggers = [ checked ];
      stopIfChanged = false;
      unitConfig = mkIf (cfg.privateKeyFile != null) {
        RequiresMountsFor = [ (toString cfg.privateKeyFile) ];
      };
      serviceConfig = lib.mkMerge [
        (mkIf (cfg.privateKeyFile != null) {
          # One in the credential store would come before it.
          ImportCredential = [ "" ];
          LoadCredential = [ "peerix.signing-key:${toString cfg.privateKeyFile}" ];
          # An empty one in the place of a file that is not there: a start that fails would leave Nix
          # waiting, a daemon without its key says so and answers every question with a miss.
          SetCredential = [ "peerix.signing-key:\\n" ];
        })
        (mkIf (isChosen cfg.user) {
          DynamicUser = false;
          User = toString cfg.user;
        })
        (mkIf (isChosen cfg.group) { Group = toString cfg.group; })
      ];
    };

    systemd.services.peerix-refresh = mkIf cfg.refreshOnResume { wantedBy = sleepTargets; };
    systemd.paths.peerix-refresh = mkIf cfg.refreshOnResume { wantedBy = [ "paths.target" ]; };

    # Appended to what is there, never in its place.
    nix.settings = {
      extra-substituters = [ gateway ];
      extra-trusted-public-keys = mkIf (publicKeys != [ ]) publicKeys;
    };
    nix.extraOptions = mkIf (cfg.globalCacheTTL != null) ''
      narinfo-cache-negative-ttl = ${toString cfg.globalCacheTTL}
      narinfo-cache-positive-ttl = ${toString cfg.globalCacheTTL}
    '';

    networking.firewall =
      let
        opened = {
          allowedTCPPorts = [ cfg.settings.port ];
          allowedUDPPorts = [ cfg.settings.port ] ++ lib.optional hasDnsSd 5353;
        };
      in
      mkIf cfg.openFirewall (
        if cfg.interfaces == [ ] then
          opened
        else
          { interfaces = lib.genAttrs cfg.interfaces (_: opened); }
      );
  };
}
