# The closure that the lab pulls: 200 small paths in a chain, 4 of 64 MiB of incompressible data,
# and one on top of all: 205. `--arg small N --arg big N --arg mib N` make another size.
# Nothing comes from outside: the builders use the lab base's own shell and Python.
{ small ? 200, big ? 4, mib ? 64 }:
let
  make = name: script: derivation {
    inherit name;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-euc" script ];
    PATH = "/usr/bin:/bin";
  };

  # Each refers to the one before it and has what a NAR can hold: directories, a program, a symlink,
  # an empty file, and a file whose length differs from path to path, so that all paddings occur.
  link = number: previous: make "lab-link-${toString number}" ''
    mkdir -p $out/share/empty $out/bin
    echo "link ${toString number} of the chain; before it: ${previous}" > $out/share/text
    printf '#!/bin/sh\nexec cat %s/share/text\n' $out > $out/bin/show
    chmod +x $out/bin/show
    ln -s ../share/text $out/bin/text
    : > $out/share/nothing
    head -c ${toString (number * 37)} /bin/sh > $out/share/piece
  '';
  chain = builtins.genList (number: link number (if number == 0 then "nothing" else chainAt (number - 1))) small;
  chainAt = builtins.elemAt chain;

  blob = number: make "lab-blob-${toString number}" ''
    mkdir $out
    python3 -c 'import random, sys; sys.stdout.buffer.write(random.Random(${toString number}).randbytes(${toString mib} << 20))' > $out/data
  '';
  blobs = builtins.genList blob big;
in
{
  inherit chain blobs;
  half = [ (chainAt (small / 2 - 1)) ] ++ builtins.genList blob (big / 2);
  top = make "lab-top" ''
    mkdir $out
    echo ${toString ([ (chainAt (small - 1)) ] ++ blobs)} > $out/parts
  '';
}
