# The package, for `callPackage`: with the flake and without it.
{
  lib,
  rustPlatform,
  installShellFiles,
  stdenv,
  systemd,
}:
let
  manifest = (lib.importTOML ../Cargo.toml).package;
in
rustPlatform.buildRustPackage {
  pname = manifest.name;
  inherit (manifest) version;

  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../Cargo.lock
      ../Cargo.toml
      ../LICENSE-APACHE
      ../LICENSE-MIT
      ../CHANGELOG.md
      ../README.md
      ../docs
      ../flake.nix
      ../nixos
      ../src
      ../systemd
      ../tests
    ];
  };
  cargoLock.lockFile = ../Cargo.lock;

  nativeBuildInputs = [ installShellFiles ];

  # They take longer than the program; the flake's check `package` runs them.
  doCheck = false;

  # On NixOS neither the program nor systemctl is where the units say.
  postInstall = ''
    for unit in systemd/*.socket systemd/*.service systemd/*.path; do
      install -D -m 644 -t $out/lib/systemd/system "$unit"
    done
    substituteInPlace $out/lib/systemd/system/*.service \
      --replace-quiet /usr/bin/peerix $out/bin/peerix \
      --replace-quiet "systemctl reset-failed" "${lib.getExe' systemd "systemctl"} reset-failed"
    substituteInPlace $out/lib/systemd/system/peerix.socket \
      --replace-fail "systemctl reset-failed" "${lib.getExe' systemd "systemctl"} reset-failed"
    installManPage docs/man/*
    installShellCompletion --cmd peerix docs/completions/peerix.bash docs/completions/peerix.fish \
      --zsh docs/completions/_peerix
    install -D -m 644 -t $out/share/doc/peerix systemd/peerix.toml README.md CHANGELOG.md LICENSE-* docs/*.md
    install -D -m 644 -t $out/share/doc/peerix/dns-sd systemd/dns-sd/*
  '';

  doInstallCheck = stdenv.buildPlatform.canExecute stdenv.hostPlatform;
  # Nothing may be left that is not on NixOS, and what was installed has to run.
  installCheckPhase = ''
    runHook preInstallCheck
    if grep -rn /usr/bin $out/lib/systemd/system; then
      exit 1
    fi
    $out/bin/peerix --version
    runHook postInstallCheck
  '';

  meta = {
    inherit (manifest) description;
    license = with lib.licenses; [
      mit
      asl20
    ];
    platforms = lib.platforms.linux;
    mainProgram = "peerix";
  };
}
