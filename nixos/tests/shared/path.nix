# A store path that no cache in the world has. Its name is an argument, so that a test can have several.
{ name }:
derivation {
  inherit name;
  system = builtins.currentSystem;
  builder = "/bin/sh";
  args = [
    "-c"
    "echo made for ${name} > $out"
  ];
}
