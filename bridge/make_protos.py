"""Writes proto/cosmos.proto …: the SDK's messages by name, number and type, as the Rust crates `cosmos-sdk-proto` and
`tendermint-proto` that this workspace is locked to have them. Run after a change of either; a test compares.

    python3 bridge/make_protos.py [~/.cargo/registry/src/*]
"""

import glob
import os
import re
import sys

PACKAGES = """auth.v1beta1 bank.v1beta1 base.v1beta1 base.query.v1beta1 base.abci.v1beta1 base.node.v1beta1 base.tendermint.v1beta1
crypto.secp256k1 crypto.ed25519 consensus.v1 crypto.multisig crypto.multisig.v1beta1 distribution.v1beta1 evidence.v1beta1 feegrant.v1beta1 gov.v1 gov.v1beta1 mint.v1beta1
slashing.v1beta1 staking.v1beta1 tx.v1beta1 tx.signing.v1beta1 upgrade.v1beta1 vesting.v1beta1""".split()
TENDERMINT = ["abci", "types", "crypto", "version", "p2p"]
# What no query of this chain answers with.
LEFT_OUT = re.compile(r"GenesisState|Authorization|GetBlockWithTxs|Amino|SearchBlocks|AbciQuery|^Status(Request|Response)$")
# What passes between CometBFT and its application.
ABCI_CALLS = re.compile(r"^(Request|Response|TxResult)")
# Of what passes between nodes, what one says of itself.
NODE_INFO = re.compile(r"^(DefaultNodeInfo|ProtocolVersion)")
GOOGLE = {"Any": "any", "Timestamp": "timestamp", "Duration": "duration"}


def camel(name):
    return "".join(part.capitalize() for part in name.split("_"))


class Reader:
    """Messages and enumerations of all packages, by full name."""

    def __init__(self):
        self.messages, self.enums, self.oneofs, self.methods = {}, {}, {}, {}

    def read(self, path, package):
        text = re.sub(r"^\s*(///|//).*$", "", open(path).read(), flags=re.M)
        scope, depth, stack = [], 0, []
        attributes, position = None, 0
        token = re.compile(
            r"#\[prost\((?P<attr>[^\]]*)\)\]|pub mod (?P<mod>\w+) \{|pub (?P<kind>struct|enum) (?P<name>\w+) ?(?P<open>[{;])"
            r"|pub (?P<field>r#\w+|\w+):\s*(?P<type>[^;{}]*?),\n|(?P<variant>\w+)\((?P<vtype>[^)]*)\),|(?P<value>\w+) = (?P<number>-?\d+),"
            r"|\"(?P<text>[A-Z0-9_a-z]+)\"|\w+::(?P<from>\w+) =>|impl [^{;]*\{|(?P<brace>[{}])|(?P<match>match \w+ \{)")
        current = None
        for m in token.finditer(text):
            got = m.group
            if got("attr") is not None:
                attributes = " ".join(got("attr").split())
            elif got("mod"):
                stack.append("mod")
                scope.append(got("mod"))
            elif got("kind"):
                full = "." + ".".join([package] + [camel(s) for s in scope] + [got("name")])
                current = full
                if got("kind") == "struct":
                    self.messages[full] = []
                elif attributes is not None and "tag" in (attributes or "") or "::prost::Oneof" in text[max(0, m.start() - 90):m.start()]:
                    self.oneofs[full] = []
                else:
                    self.enums[full] = []
                if got("open") == "{":
                    stack.append("type")
            elif got("field") and current in self.messages and attributes:
                self.messages[current].append((got("field").removeprefix("r#"), attributes, got("type"), list(scope), package))
                attributes = None
            elif got("variant") and current in self.oneofs and stack and stack[-1] == "type" and attributes:
                self.oneofs[current].append((got("variant"), attributes, got("vtype"), list(scope), package))
                attributes = None
            elif got("value") and current in self.enums and stack and stack[-1] == "type":
                self.enums[current].append([got("value"), int(got("number")), None])
            elif got("from") and current in self.enums:
                self.pending = got("from")
            elif got("text") and current in self.enums and getattr(self, "pending", None):
                for row in self.enums[current]:
                    if row[0] == self.pending and row[2] is None:
                        row[2] = got("text")
                self.pending = None
            elif got("brace") == "}":
                if stack:
                    kind = stack.pop()
                    if kind == "mod":
                        scope.pop()
            elif m.group(0).endswith("{"):
                stack.append("other")

    def read_methods(self, path, package):
        """`rpc` lines, from the client's calls."""
        text = open(path).read()
        call = re.compile(r"pub async fn (\w+)\(\s*&mut self,\s*request: impl tonic::IntoRequest<([^>]*)>.*?tonic::Response<([^>]*)>"
                          r".*?\"/([\w.]+)/(\w+)\"", re.S)
        for _, request, response, service, method in call.findall(text):
            if service.endswith((".Query", ".Service")):
                self.methods.setdefault(service, {})[method] = (request.split("::")[-1], response.split("::")[-1])

    def resolve(self, path, scope, package):
        path = re.sub(r"\s", "", path)
        for wrap in ("::core::option::Option<", "::prost::alloc::vec::Vec<", "::prost::alloc::boxed::Box<"):
            while path.startswith(wrap):
                path = path[len(wrap):].rstrip(",>")
        if path.startswith("::tendermint_proto::") or path.startswith("::prost_types::"):
            parts = path.split("::")[2:]
            if parts[-1] in GOOGLE and ("google" in parts or path.startswith("::prost_types")):
                return f".google.protobuf.{parts[-1]}"
            return ".tendermint." + ".".join(p if p[0].isupper() or i == 0 else camel(p) for i, p in enumerate(parts))
        modules = package.split(".") + scope
        parts = path.split("::")
        while parts[0] == "super":
            modules, parts = modules[:-1], parts[1:]
        if parts[0] == "crate":
            parts = parts[1:]
        if parts[0] == "google":
            return f".google.protobuf.{parts[-1]}"
        modules = modules + parts[:-1]
        base = len(package.split("."))
        # A module below a package is a message; packages have only lower-case names.
        for split in range(len(modules), 0, -1):
            full = "." + ".".join(modules[:split] + [camel(s) for s in modules[split:]] + [parts[-1]])
            if full in self.messages or full in self.enums or full in self.oneofs:
                return full
        return "." + ".".join(modules + [parts[-1]])


def main():
    roots = sys.argv[1:] or glob.glob(os.path.expanduser("~/.cargo/registry/src/*"))
    here = os.path.dirname(os.path.abspath(__file__))
    lock = open(os.path.join(here, "../Cargo.lock")).read()
    sdk = re.search(r'name = "cosmos-sdk-proto"\nversion = "([\d.]+)"', lock)[1]
    folder = next(p for r in roots for p in glob.glob(f"{r}/cosmos-sdk-proto-{sdk}"))
    tendermint = next(p for r in roots for p in sorted(glob.glob(f"{r}/tendermint-proto-0.40*")))
    reader = Reader()
    for name in PACKAGES:
        base = f"{folder}/src/prost/cosmos-sdk/cosmos.{name}"
        reader.read(base + ".rs", "cosmos." + name)
        if os.path.exists(base + ".tonic.rs"):
            reader.read_methods(base + ".tonic.rs", "cosmos." + name)
    for name in TENDERMINT:
        reader.read(f"{tendermint}/src/prost/v0_38/tendermint.{name}.rs", "tendermint." + name)

    files = {}
    for full in sorted(reader.messages):
        package = package_of(full)
        short = full[len(package) + 2:]
        if "." in short or LEFT_OUT.search(short) or package == "tendermint.abci" and ABCI_CALLS.search(short):
            continue
        if package == "tendermint.p2p" and not NODE_INFO.search(short):
            continue
        files.setdefault(package, {})[short] = full
    written = {}
    for package, names in sorted(files.items()):
        body, imports = [], set()
        for full in sorted(e for e in reader.enums if package_of(e) == package and "." not in e[len(package) + 2:]):
            body.append(enum(reader, full, ""))
        for short, full in sorted(names.items()):
            body.append(message(reader, full, "", imports))
        for service in sorted(s for s in reader.methods if s.rsplit(".", 1)[0] == package):
            rpcs = [f"  rpc {m} ({a}) returns ({b});" for m, (a, b) in reader.methods[service].items() if a in names and b in names]
            body.append(f"service {service.rsplit('.', 1)[1]} {{\n" + "\n".join(rpcs) + "\n}\n")
        path = package.replace(".", "/") + ".proto"
        lines = [f"// Names, numbers and types of package {package}; written by make_protos.py.", 'syntax = "proto3";', "", f"package {package};", ""]
        needed = sorted(i for i in imports if i != package)
        for i in needed:
            lines.append(f'import "{i if i.startswith("google/") else i.replace(".", "/") + ".proto"}";')
        if needed:
            lines.append("")
        written[path] = "\n".join(lines) + "\n" + "\n".join(body)
    for path, text in written.items():
        out = os.path.join(here, "proto", path)
        os.makedirs(os.path.dirname(out), exist_ok=True)
        open(out, "w").write(text)
    print(len(written), "files,", sum(t.count("\n") for t in written.values()), "lines")


def package_of(full):
    return ".".join(p for p in full.strip(".").split(".") if p[0].islower())


def enum(reader, full, pad):
    rows = reader.enums[full]
    inner = "".join(f"{pad}  {text or name} = {number};\n" for name, number, text in rows)
    alias = f"{pad}  option allow_alias = true;\n" if len({r[1] for r in rows}) < len(rows) else ""
    return f"{pad}enum {full.rsplit('.', 1)[1]} {{\n{alias}{inner}{pad}}}\n"


def field(reader, name, attributes, path, scope, package, imports):
    parts = [p.strip() for p in re.split(r",(?![^\"]*\"[,)]?\s*tag)", attributes)]
    kind = parts[0]
    found = re.search(r"tag = \"(\d+)\"", attributes)
    if not found: raise SystemExit((name, attributes, path))
    tag = found[1]
    label = "repeated " if "repeated" in parts else ""
    if kind == "message":
        kind = reader.resolve(path, scope, package)
    elif kind.startswith("enumeration"):
        kind = reader.resolve(re.search(r'"([^"]+)"', kind)[1], scope, package)
    elif kind.startswith("bytes"):
        kind = "bytes"
    elif kind.startswith(("map", "btree_map")):
        raise SystemExit(f"a map: {name}")
    if kind.startswith(".google.protobuf."):
        imports.add(f"google/protobuf/{GOOGLE[kind.rsplit('.', 1)[1]]}.proto")
    elif kind.startswith("."):
        imports.add(package_of(kind))
    optional = "optional " if "optional" in parts and not kind.startswith(".") else ""
    return f"{optional}{label}{kind} {name} = {tag};"


def message(reader, full, pad, imports):
    text = f"{pad}message {full.rsplit('.', 1)[1]} {{\n"
    inside = pad + "  "
    for nested in sorted(m for m in reader.enums if m.rsplit(".", 1)[0] == full):
        text += enum(reader, nested, inside)
    for nested in sorted(m for m in reader.messages if m.rsplit(".", 1)[0] == full):
        text += message(reader, nested, inside, imports)
    for name, attributes, path, scope, package in reader.messages[full]:
        if attributes.startswith("oneof"):
            of = reader.resolve(re.search(r'oneof = "([^"]+)"', attributes)[1], scope, package)
            text += f"{inside}oneof {name} {{\n"
            for variant, attrs, vtype, vscope, vpackage in reader.oneofs[of]:
                snake = re.sub(r"(?<!^)(?=[A-Z])", "_", variant).lower()
                text += f"{inside}  {field(reader, snake, attrs, vtype, vscope, vpackage, imports)}\n"
            text += f"{inside}}}\n"
        else:
            text += f"{inside}{field(reader, name, attributes, path, scope, package, imports)}\n"
    return text + f"{pad}}}\n"


if __name__ == "__main__":
    main()
