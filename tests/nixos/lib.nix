# A small stand-in for the library of Nixpkgs: as much of it as nixos/ and flake.nix use, so that they
# can be evaluated on a machine that has Nix and nothing else.
#
# What it does not cover, and so no test here can find:
#   - types check the outermost shape and merge, with no hints for a mistake; `apply`, `readOnly`,
#     `visible`, renamed and removed options, `disabledModules`, `_module.args` and `key` do not exist;
#   - an option's description and documentation are not rendered;
#   - the rest of the library.
# The cases that are evaluated with it (cases.nix) take the library as an argument and can be evaluated
# with the real one:
# `nix-instantiate --eval --strict --json tests/nixos -A results --arg lib 'import <nixpkgs/lib>'`.
let
  inherit (builtins)
    all
    any
    attrNames
    concatLists
    concatMap
    concatStringsSep
    elem
    filter
    foldl'
    hasAttr
    head
    isAttrs
    isBool
    isFunction
    isInt
    isList
    isPath
    isString
    length
    listToAttrs
    map
    mapAttrs
    match
    removeAttrs
    sort
    stringLength
    substring
    tail
    ;

  typeOf = value: if isAttrs value then value._type or "" else "";
  place = concatStringsSep ".";

  # Properties: what stands between a definition and its value.
  mkIf = condition: content: {
    _type = "if";
    inherit condition content;
  };
  mkMerge = contents: {
    _type = "merge";
    inherit contents;
  };
  mkOverride = priority: content: {
    _type = "override";
    inherit priority content;
  };
  mkOrder = priority: content: {
    _type = "order";
    inherit priority content;
  };
  defaultPriority = 100;
  defaultOrder = 1000;

  # Moves properties of a set down to its attributes. Which attributes there are must not depend on a
  # condition, because conditions look at the whole configuration.
  pushedDown =
    value:
    if typeOf value == "if" then
      map (mapAttrs (_: mkIf value.condition)) (pushedDown value.content)
    else if typeOf value == "override" then
      map (mapAttrs (_: mkOverride value.priority)) (pushedDown value.content)
    else if typeOf value == "merge" then
      concatMap pushedDown value.contents
    else
      [ value ];

  # The values of a definition that hold, each with its priority and order.
  discharged =
    value:
    if typeOf value == "if" then
      (if value.condition then discharged value.content else [ ])
    else if typeOf value == "merge" then
      concatMap discharged value.contents
    else if typeOf value == "override" then
      map (it: it // { inherit (value) priority; }) (discharged value.content)
    else if typeOf value == "order" then
      map (it: it // { order = value.priority; }) (discharged value.content)
    else
      [
        {
          priority = defaultPriority;
          order = defaultOrder;
          inherit value;
        }
      ];

  # The values of the best priority, in order.
  winners =
    definitions:
    let
      held = concatMap discharged definitions;
      best = foldl' (least: it: if it.priority < least then it.priority else least) 10000 held;
    in
    map (it: it.value) (sort (a: b: a.order < b.order) (filter (it: it.priority == best) held));

  names = sets: attrNames (foldl' (all: set: all // set) { } sets);
  valuesOf = name: sets: map (set: set.${name}) (filter (hasAttr name) sets);

  merged =
    path: type: values:
    let
      wrong = filter (value: !type.check value) values;
    in
    if wrong != [ ] then throw "`${place path}' is not of type `${type.name}'" else type.merge path values;

  optionValue =
    path: option: definitions:
    let
      values = winners definitions;
    in
    if values != [ ] then
      merged path option.type values
    else if option ? default then
      merged path option.type [ option.default ]
    else
      throw "`${place path}' is used and not defined";

  # The tree of values for a tree of options and the definitions for it.
  evaluated =
    path: freeform: options: definitions:
    let
      sets = concatMap pushedDown definitions;
      value =
        name:
        let
          here = path ++ [ name ];
          given = valuesOf name sets;
        in
        if !(options ? ${name}) then
          if freeform == null then
            throw "the option `${place here}' does not exist"
          else
            # It is the type of a set, wherever in the tree that set is.
            (merged path freeform (map (it: { ${name} = it; }) (winners given))).${name}
        else if typeOf options.${name} == "option" then
          optionValue here options.${name} given
        else
          evaluated here freeform options.${name} given;
      known = attrNames options;
      unknown = filter (name: !(options ? ${name}) && winners (valuesOf name sets) != [ ]) (names sets);
    in
    # What is not declared is an error even if nobody looks at it.
    if freeform == null then
      foldl' (result: name: if options ? ${name} then result else throw "the option `${place (path ++ [ name ])}' does not exist")
        (listToAttrs (
          map (name: {
            inherit name;
            value = value name;
          }) known
        ))
        (names sets)
    else
      listToAttrs (
        map (name: {
          inherit name;
          value = value name;
        }) (known ++ unknown)
      );

  joined =
    path: trees:
    listToAttrs (
      map (name: {
        inherit name;
        value =
          let
            parts = valuesOf name trees;
          in
          if any (part: typeOf part == "option") parts then
            if length parts == 1 then head parts else throw "`${place (path ++ [ name ])}' is declared twice"
          else
            joined (path ++ [ name ]) parts;
      }) (names trees)
    );

  evalModules =
    {
      modules,
      specialArgs ? { },
      prefix ? [ ],
    }:
    let
      arguments = specialArgs // {
        inherit lib options config;
      };
      flat =
        module:
        let
          loaded = if isPath module || isString module then import module else module;
          called = if isFunction loaded then loaded arguments else loaded;
          isPlain = !(called ? config || called ? options);
        in
        concatMap flat (called.imports or [ ])
        ++ [
          {
            options = called.options or { };
            freeform = called.freeformType or null;
            config =
              if isPlain then
                removeAttrs called [
                  "imports"
                  "freeformType"
                ]
              else
                called.config or { };
          }
        ];
      parts = concatMap flat modules;
      freeforms = filter (type: type != null) (map (part: part.freeform) parts);
      options = joined prefix (map (part: part.options) parts);
      # The definitions of later modules come first.
      config = evaluated prefix (if freeforms == [ ] then null else head freeforms) options (
        foldl' (reversed: part: [ part.config ] ++ reversed) [ ] parts
      );
    in
    {
      inherit options config;
    };

  # Types: a name, a check of one value, and how several become one.
  single =
    path: values:
    if all (value: value == head values) (tail values) then
      head values
    else
      throw "`${place path}' has conflicting definitions";
  type = name: check: {
    inherit name check;
    merge = single;
  };

  types = rec {
    anything = {
      name = "anything";
      check = _: true;
      merge =
        path: values:
        if all isAttrs values && !any lib.isDerivation values then
          (attrsOf anything).merge path values
        else
          single path values;
    };
    raw = type "raw" (_: true);
    bool = type "bool" isBool;
    int = type "int" isInt;
    float = type "float" builtins.isFloat;
    str = type "str" isString;
    path = type "path" (
      value: isPath value || lib.isDerivation value || (isString value && substring 0 1 value == "/")
    );
    package = type "package" lib.isDerivation;
    port = type "port" (value: isInt value && value >= 0 && value <= 65535);
    ints = {
      unsigned = type "unsigned int" (value: isInt value && value >= 0);
      positive = type "positive int" (value: isInt value && value > 0);
    };
    enum = values: type "one of ${concatStringsSep ", " (map toString values)}" (value: elem value values);
    strMatching = pattern: type "string matching ${pattern}" (value: isString value && match pattern value != null);
    lines = str // {
      name = "lines";
      merge = _: concatStringsSep "\n";
    };
    nullOr = inner: {
      name = "null or ${inner.name}";
      check = value: value == null || inner.check value;
      merge = path: values: if all (value: value == null) values then null else merged path inner values;
    };
    listOf = inner: {
      name = "list of ${inner.name}";
      check = isList;
      merge =
        path: values:
        map (value: merged path inner [ value ]) (
          concatMap (value: map (it: it.value) (discharged value)) (concatLists values)
        );
    };
    attrsOf = inner: {
      name = "set of ${inner.name}";
      check = isAttrs;
      merge =
        path: values:
        let
          sets = concatMap pushedDown values;
          defined = filter (name: winners (valuesOf name sets) != [ ]) (names sets);
        in
        listToAttrs (
          map (name: {
            inherit name;
            value = merged (path ++ [ name ]) inner (winners (valuesOf name sets));
          }) defined
        );
    };
    either = first: second: {
      name = "${first.name} or ${second.name}";
      check = value: first.check value || second.check value;
      merge = path: values: (if all first.check values then first else second).merge path values;
    };
    oneOf = list: foldl' either (head list) (tail list);
    submodule = module: {
      name = "submodule";
      check = value: isAttrs value || isFunction value || isPath value;
      merge =
        path: values:
        (evalModules {
          modules = [ module ] ++ values;
          specialArgs.name = lib.last path;
          prefix = path;
        }).config;
    };
  };

  lib = builtins // {
    inherit
      evalModules
      mkIf
      mkMerge
      mkOrder
      mkOverride
      types
      ;
    mkOption = option: option // { _type = "option"; };
    mkEnableOption =
      what:
      lib.mkOption {
        type = types.bool;
        default = false;
        description = "Whether to enable ${what}.";
      };
    mkDefault = mkOverride 1000;
    mkForce = mkOverride 50;
    mkBefore = mkOrder 500;
    mkAfter = mkOrder 1500;
    literalExpression = text: {
      _type = "literalExpression";
      inherit text;
    };

    last = list: builtins.elemAt list (length list - 1);
    optional = condition: value: if condition then [ value ] else [ ];
    optionals = condition: list: if condition then list else [ ];
    optionalString = condition: text: if condition then text else "";
    optionalAttrs = condition: set: if condition then set else { };

    isDerivation = value: isAttrs value && value.type or "" == "derivation";
    filterAttrs =
      keep: set: removeAttrs set (filter (name: !keep name set.${name}) (attrNames set));
    mapAttrsToList = function: set: map (name: function name set.${name}) (attrNames set);
    mapAttrs' = function: set: listToAttrs (lib.mapAttrsToList function set);
    genAttrs =
      list: function:
      listToAttrs (
        map (name: {
          inherit name;
          value = function name;
        }) list
      );
    nameValuePair = name: value: { inherit name value; };

    concatMapStrings = function: list: concatStringsSep "" (map function list);
    hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;
    hasSuffix =
      suffix: text:
      let
        cut = stringLength text - stringLength suffix;
      in
      cut >= 0 && substring cut (-1) text == suffix;
    trim =
      text:
      let
        found = match "[ \t\r\n]*(.*[^ \t\r\n])[ \t\r\n]*" text;
      in
      if found == null then "" else head found;
    removeSuffix =
      suffix: text:
      if lib.hasSuffix suffix text then
        substring 0 (stringLength text - stringLength suffix) text
      else
        text;

    versionAtLeast = version: least: builtins.compareVersions version least >= 0;
    getVersion = package: package.version or (builtins.parseDrvName package.name).version;
    getExe = package: "${package}/bin/${package.meta.mainProgram or package.pname}";
    getExe' = package: name: "${package}/bin/${name}";

    fileset = {
      toSource = { root, ... }: root;
      unions = list: list;
    };
    licenses = {
      mit.spdxId = "MIT";
      asl20.spdxId = "Apache-2.0";
    };
    platforms.linux = [
      "x86_64-linux"
      "aarch64-linux"
    ];
    importTOML = file: builtins.fromTOML (builtins.readFile file);
  };
in
lib
