# Configurations of services.peerix, and all that is to come of each. `null` is expected of one that
# must not evaluate.
let
  key = "lab-1:2EGDCPEm15zRnXJYeu3o5z8EWZWkTQTykbkIsaJxdOs=";
  toml = "/nix/store/00000000000000000000000000000000-peerix.toml";

  service = sections: {
    text = ''
      [Unit]
      ${sections.unit or ""}X-Reload-Triggers=${toml}
      [Service]
      X-StopIfChanged=false
      ${sections.service or ""}'';
    wantedBy = [ ];
  };
  socket = text: {
    inherit text;
    wantedBy = [ "sockets.target" ];
  };
  ports = port: {
    allowedTCPPorts = [ port ];
    allowedUDPPorts = [
      port
      5353
    ];
  };

  # `enable = true`, and nothing else.
  plain = {
    units."peerix.socket" = socket "";
    units."peerix.service" = service { };
    files."peerix/peerix.toml" = "port = 12304\n";
    packages = [ "peerix-0.1.0" ];
    programs = [ "peerix-0.1.0" ];
    nix = {
      substituters = [ "https://cache.nixos.org/" ];
      extra-substituters = [ "http://127.0.0.1:12304/" ];
    };
    nixExtra = "";
    announcements = { };
    firewall = ports 12304 // {
      interfaces = { };
    };
    warnings = [ ];
    failures = [ ];
  };
  withSettings = text: { files."peerix/peerix.toml" = text; };
  withService = sections: {
    units = plain.units // {
      "peerix.service" = service sections;
    };
  };
  withKey = {
    nix = plain.nix // {
      extra-trusted-public-keys = [ key ];
    };
  };

  credential = ''
    ImportCredential=
    LoadCredential=peerix.signing-key:/run/secrets/peerix
    SetCredential=peerix.signing-key:\n
  '';
  mounts = "RequiresMountsFor=/run/secrets/peerix\n";

  warning = shared: rule: [
    ''
      services.peerix: this configuration may be one for the Python peerix, which shared the whole store. Now
      ${shared}. To share every path, secrets in the store included: services.peerix.share = "all". To keep the
      new rule without this warning: services.peerix.share = "${rule}".
    ''
  ];
  nowSigned = warning "only paths signed by a key of settings.share.keys are shared, by default what cache.nixos.org signed" "signed";
  nowBuilt = warning "paths signed by a key of settings.share.keys are shared, by default what cache.nixos.org signed, and what was built here" "built";

  case = configuration: changes: {
    configuration.services.peerix = {
      enable = true;
    }
    // configuration;
    expected = plain // changes;
  };
  refused = configuration: (case configuration { }) // { expected = null; };
  failing =
    configuration: changes: message:
    case configuration (changes // { failures = [ message ]; });
in
rec {
  defaults = case { } { };

  disabled = {
    configuration = { };
    expected = {
      units = { };
      files = { };
      packages = [ ];
      programs = [ ];
      nix.substituters = [ "https://cache.nixos.org/" ];
      nixExtra = "";
      announcements = { };
      firewall = {
        allowedTCPPorts = [ ];
        allowedUDPPorts = [ ];
        interfaces = { };
      };
      warnings = [ ];
      failures = [ ];
    };
  };

  # The file is checked by the program when the system is built.
  checked-at-build =
    case { } (withSettings ''
      /usr/bin/peerix --check-config --config ${toml}
      cp ${toml} $out
    '')
    // {
      canExecute = true;
    };

  # Configurations for the old module.

  old-minimal = case { openFirewall = false; } {
    firewall = {
      allowedTCPPorts = [ ];
      allowedUDPPorts = [ ];
      interfaces = { };
    };
  };

  old-with-every-option =
    case
      {
        openFirewall = true;
        privateKeyFile = "/run/secrets/peerix";
        publicKeyFile = ./public-key;
        publicKey = "other-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
        user = "nobody";
        group = "nobody";
        globalCacheTTL = 600;
      }
      (
        withService {
          unit = mounts;
          service = credential;
        }
        // {
          nix = plain.nix // {
            extra-trusted-public-keys = [
              "other-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="
              key
            ];
          };
          nixExtra = ''
            narinfo-cache-negative-ttl = 600
            narinfo-cache-positive-ttl = 600
          '';
          warnings = nowBuilt;
        }
      );

  # As `builtins.readFile` gives it.
  old-public-key = case { publicKey = "${key}\n"; } (withKey // { warnings = nowSigned; });

  old-user-ids = case
    {
      user = 4711;
      group = 4712;
    }
    (
      withService {
        service = ''
          DynamicUser=false
          Group=4712
          User=4711
        '';
      }
      // {
        warnings = nowSigned;
      }
    );

  # `nobody` was the default, its group has another name on NixOS: this was all that one had to set.
  old-group-alone = case { group = "nogroup"; } { warnings = nowSigned; };

  # What share says is a decision, so there is nothing to warn of.
  old-and-decided = case
    {
      publicKey = key;
      share = "all";
    }
    (
      withKey
      // withSettings ''
        port = 12304
        [share]
        paths = "all"
      ''
    );

  # New options.

  own-builds = case
    {
      privateKeyFile = "/run/secrets/peerix";
      publicKey = key;
      share = "built";
    }
    (
      withKey
      // withService {
        unit = mounts;
        service = credential;
      }
      // withSettings ''
        port = 12304
        [share]
        paths = "built"
      ''
    );

  other-port = case { port = 8080; } (
    withSettings "port = 8080\n"
    // {
      units = plain.units // {
        "peerix.socket" = socket ''
          [Socket]
          ListenStream=
          ListenStream=8080
          ListenDatagram=8080
        '';
      };
      nix = plain.nix // {
        extra-substituters = [ "http://127.0.0.1:8080/" ];
      };
      firewall = ports 8080 // {
        interfaces = { };
      };
    }
  );

  # One truth: whoever sets it in `settings` gets the same.
  port-in-settings = case { settings.port = 8080; } {
    inherit (other-port.expected)
      units
      nix
      firewall
      files
      ;
  };

  some-interfaces =
    case
      {
        interfaces = [
          "eth0"
          "wlan0"
        ];
      }
      (
        withSettings ''
          port = 12304
          [interfaces]
          include = ["eth0", "wlan0"]
        ''
        // {
          firewall = {
            allowedTCPPorts = [ ];
            allowedUDPPorts = [ ];
            interfaces.eth0 = ports 12304;
            interfaces.wlan0 = ports 12304;
          };
        }
      );

  longer-awake = case { idleTimeout = "1h"; } (withSettings ''
    port = 12304
    [idle]
    timeout = "1h"
  '');

  nothing-shared = case { share = "none"; } (withSettings ''
    port = 12304
    [share]
    paths = "none"
  '');

  refresh-on-resume = case { refreshOnResume = true; } {
    units = plain.units // {
      "peerix-refresh.service" = {
        text = "";
        wantedBy = [
          "suspend.target"
          "hibernate.target"
          "hybrid-sleep.target"
          "suspend-then-hibernate.target"
        ];
      };
      "peerix-refresh.path" = {
        text = "";
        wantedBy = [ "paths.target" ];
      };
    };
  };

  every-kind-of-setting =
    case
      {
        settings = {
          priority = 30;
          allowed-networks = [
            "127.0.0.0/8"
            "10.0.0.0/8"
          ];
          interfaces.exclude = [ ];
          idle.timeout = "0s";
          discovery = {
            broadcast = false;
            peers = [
              "10.0.0.1"
              "[fd00::5]:12304"
            ];
          };
          share.exclude = [ "*private*" ];
          share.keys = [ "cache.example.org-1" ];
          limits = {
            connections = 256;
            upload = "1GiB";
          };
        };
      }
      (withSettings ''
        allowed-networks = ["127.0.0.0/8", "10.0.0.0/8"]
        port = 12304
        priority = 30
        [discovery]
        broadcast = false
        peers = ["10.0.0.1", "[fd00::5]:12304"]
        [idle]
        timeout = "0s"
        [interfaces]
        exclude = []
        [limits]
        connections = 256
        upload = "1GiB"
        [share]
        exclude = ["*private*"]
        keys = ["cache.example.org-1"]
      ''
      // {
        firewall = plain.firewall // {
          allowedUDPPorts = [ 12304 ];
        };
      });

  # Peers by name.
  named-peers =
    case
      {
        peers = [
          "nas.lan"
          "http://cache.lan:5000"
        ];
        domain = "example.org";
        settings.discovery.dns-sd = false;
      }
      (
        withSettings ''
          port = 12304
          [discovery]
          dns-sd = false
          domain = "example.org"
          peers = ["nas.lan", "http://cache.lan:5000"]
        ''
        // {
          firewall = plain.firewall // {
            allowedUDPPorts = [ 12304 ];
          };
        }
      );

  # Who announces a machine whose daemon sleeps.
  announced-by-avahi = {
    configuration = {
      services.peerix.enable = true;
      services.peerix.port = 8080;
      services.avahi.enable = true;
      services.avahi.publish.enable = true;
      services.resolved.enable = true;
    };
    expected = other-port.expected // {
      announcements.peerix = builtins.replaceStrings [ "12304" ] [ "8080" ] (
        builtins.readFile ../../systemd/dns-sd/peerix.service
      );
    };
  };
  announced-by-resolved = {
    configuration = {
      services.peerix.enable = true;
      services.resolved.enable = true;
    };
    expected = plain // {
      files = plain.files // {
        "systemd/dnssd/peerix.dnssd" = builtins.readFile ../../systemd/dns-sd/peerix.dnssd;
      };
    };
  };
  announced-by-nobody = {
    configuration = {
      services.peerix.enable = true;
      services.peerix.settings.discovery.dns-sd = false;
      services.avahi.enable = true;
      services.avahi.publish.enable = true;
      services.resolved.enable = true;
    };
    expected =
      plain
      // withSettings ''
        port = 12304
        [discovery]
        dns-sd = false
      ''
      // {
        firewall = plain.firewall // {
          allowedUDPPorts = [ 12304 ];
        };
      };
  };

  # Nothing that the owner has set is replaced.
  beside-the-owner-s-settings = {
    configuration = {
      services.peerix.enable = true;
      nix.settings.substituters = [ "https://example.org" ];
      nix.settings.extra-substituters = [ "https://example.com" ];
      nix.extraOptions = "keep-outputs = true";
      networking.firewall.allowedTCPPorts = [ 22 ];
      systemd.services.peerix.serviceConfig.CPUWeight = 50;
    };
    expected =
      plain
      // withService { service = "CPUWeight=50\n"; }
      // {
        nix.substituters = [
          "https://example.org"
          "https://cache.nixos.org/"
        ];
        nix.extra-substituters = [
          "https://example.com"
          "http://127.0.0.1:12304/"
        ];
        nixExtra = "keep-outputs = true";
        firewall = {
          allowedTCPPorts = [
            22
            12304
          ];
          inherit (plain.firewall) allowedUDPPorts;
          interfaces = { };
        };
      };
  };

  # Assertions.

  a-secret-key-in-the-store =
    failing
      {
        privateKeyFile = "/nix/store/00000000000000000000000000000000-key";
        share = "built";
      }
      (
        withService {
          unit = "RequiresMountsFor=/nix/store/00000000000000000000000000000000-key\n";
          service = ''
            ImportCredential=
            LoadCredential=peerix.signing-key:/nix/store/00000000000000000000000000000000-key
            SetCredential=peerix.signing-key:\n
          '';
        }
        // withSettings ''
          port = 12304
          [share]
          paths = "built"
        ''
      )
      ''
        services.peerix.privateKeyFile is in the Nix store (/nix/store/00000000000000000000000000000000-key), where every user
        can read it. Right would be a file outside of it, for root alone, written as a string: "/run/secrets/peerix".
      '';

  a-key-that-the-service-cannot-read =
    failing { settings.signing.key-file = "/etc/peerix/key"; }
      (withSettings ''
        port = 12304
        [signing]
        key-file = "/etc/peerix/key"
      '')
      ''
        services.peerix.settings.signing.key-file: the service has no right to read a secret key by itself.
        Right would be services.peerix.privateKeyFile, which systemd reads for it.
      '';

  root =
    failing
      {
        user = "root";
        share = "signed";
      }
      (
        withService {
          service = ''
            DynamicUser=false
            User=root
          '';
        }
        // withSettings ''
          port = 12304
          [share]
          paths = "signed"
        ''
      )
      ''
        services.peerix.user and group: peerix does not run as root. Right would be another user, or
        none, for one that systemd makes up.
      '';

  a-group-without-its-user =
    failing
      {
        group = "staff";
        share = "signed";
      }
      (
        withService { service = "Group=staff\n"; }
        // withSettings ''
          port = 12304
          [share]
          paths = "signed"
        ''
      )
      ''
        services.peerix.group is set, and user is not: a user that systemd makes up has a group of its own.
        Right would be both, or none.
      '';

  globs-for-the-firewall =
    failing { interfaces = [ "eth*" ]; }
      (
        withSettings ''
          port = 12304
          [interfaces]
          include = ["eth*"]
        ''
        // {
          firewall = {
            allowedTCPPorts = [ ];
            allowedUDPPorts = [ ];
            interfaces."eth*" = ports 12304;
          };
        }
      )
      ''
        services.peerix.interfaces: the firewall knows names of interfaces, not globs (eth*).
        Right would be the names; or globs in services.peerix.settings.interfaces.include and openFirewall = false.
      '';

  interfaces-that-differ =
    failing
      {
        interfaces = [ "eth0" ];
        settings.interfaces.include = [ "wlan*" ];
      }
      (
        withSettings ''
          port = 12304
          [interfaces]
          include = ["wlan*"]
        ''
        // {
          firewall = {
            allowedTCPPorts = [ ];
            allowedUDPPorts = [ ];
            interfaces.eth0 = ports 12304;
          };
        }
      )
      ''
        services.peerix.interfaces and settings.interfaces.include say different things: the port would be open on
        some interfaces, and questions would go out on others. Right would be one of the two.
      '';

  globs-without-the-firewall =
    case
      {
        openFirewall = false;
        interfaces = [ "eth*" ];
      }
      {
        inherit (globs-for-the-firewall.expected) files;
        firewall = {
          allowedTCPPorts = [ ];
          allowedUDPPorts = [ ];
          interfaces = { };
        };
      };

  old-systemd = {
    configuration = {
      services.peerix.enable = true;
      systemd.package = {
        type = "derivation";
        name = "systemd-253.6";
        version = "253.6";
        outPath = "/nix/store/00000000000000000000000000000000-systemd-253.6";
      };
    };
    expected = plain // {
      failures = [
        ''
          services.peerix needs systemd 254 or newer, this system has 253.6.
        ''
      ];
    };
  };

  # What has the wrong type, or does not exist.

  refused-port = refused { port = "12304"; };
  refused-port-beyond-all = refused { port = 65536; };
  refused-share = refused { share = "some"; };
  refused-duration = refused { idleTimeout = "5 parsecs"; };
  refused-size = refused { settings.limits.upload = "10MB"; };
  refused-setting = refused { settings.discovery.peers = "10.0.0.1"; };
  refused-option = refused { shares = "all"; };
}
